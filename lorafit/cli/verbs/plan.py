"""What `lorafit plan` does. Nothing here imports torch, unless it is asked to measure."""

import os
import sys
from pathlib import Path

from lorafit.cli.before import check_cheaply, settle_hub
from lorafit.errors import UserError
from lorafit.plan.machine import Machine, described, this_machine
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import RunDir

WILL_NOT_FIT = 1


def plan(recipe_path: Path, overrides: list[str], *, gpu_memory: str | None, gpu: str | None,
         devices: int | None, measure: bool, calibrate: bool, price: float | None, sources: bool,
         as_json: bool) -> None:
    recipe = load_recipe(recipe_path, overrides)
    machine = _machine(gpu_memory, gpu, devices)
    check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True, checks=False,
                  weights=False)
    settle_hub(recipe)
    from lorafit.cli import show_plan
    from lorafit.plan import plan as plans

    if calibrate:
        _calibrate(recipe, machine)

    found = plans.plan(recipe, machine, measure_loss=_base_loss if measure else None)
    if as_json:
        show_plan.as_json(found, price_per_hour=price)
    else:
        show_plan.plan(found, sources=sources, price_per_hour=price)
    if found.memory is not None and not found.memory.fits:
        sys.exit(WILL_NOT_FIT)


def _machine(gpu_memory: str | None, gpu: str | None, devices: int | None) -> Machine:
    if gpu_memory is not None:
        return described(gpu_memory, devices or 1, gpu or "GPU")
    if gpu is not None:
        raise UserError("how much memory has it?", f"--gpu {gpu}", "add --gpu-memory 24GB")
    machine = this_machine()
    if devices is None:
        return machine
    if machine.is_here and devices > machine.devices and machine.device.kind == "cuda":
        raise UserError(f"this machine has {machine.devices}", f"--devices {devices}",
                        "describe another one with --gpu-memory")
    return Machine(machine.device, devices, machine.memory_bytes // (
        devices if machine.device.kind == "cpu" else 1), machine.is_here, machine.threads)


def _calibrate(recipe: Recipe, machine: Machine) -> None:
    if not machine.is_here:
        raise UserError("only this machine can be measured", "--calibrate",
                        "leave it out, or --gpu-memory")
    if recipe.model.quantization == "int8":
        raise UserError("steps on int8 bases are not measured: models of random weights are not "
                        "made in it", "--calibrate", "leave it out; the time is not told then")
    from lorafit.bench.calibrate import calibrate
    from lorafit.plan.calibration import Key
    from lorafit.recipe import auto

    if machine.device.kind == "cpu" and (load := os.getloadavg()[0]) > machine.threads / 2:
        print(f"other programs compute here too (load {load:.1f}): what is measured will be too "
              "slow for a quiet machine", file=sys.stderr)
    dtype = auto.dtype(recipe.model.dtype, machine.device).value
    calibrate(Key.of(machine, dtype, recipe.model.quantization), lambda text: print(
        f"measuring steps of {text} …", file=sys.stderr, flush=True))


def _base_loss(recipe: Recipe) -> float:
    from lorafit.evaluate.base_loss import ROWS, base_loss

    print(f"measuring the base's loss on {ROWS} rows …", file=sys.stderr, flush=True)
    return base_loss(recipe)
