"""`python -m lorafit`, which is also what the launchers of torch and accelerate start."""

from lorafit.cli.main import main

if __name__ == "__main__":
    main()
