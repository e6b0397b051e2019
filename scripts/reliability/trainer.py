"""A LoRA training script as its users write it: transformers' Trainer and peft, nothing else.

It saves every --save-steps steps and goes on from the last checkpoint with get_last_checkpoint and
resume_from_checkpoint, as the documentation of transformers advises.
"""

import argparse
import os


def main() -> None:
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_utils import get_last_checkpoint

    parser = argparse.ArgumentParser(prog="trainer")
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save-steps", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-at-signal", type=int, default=0)
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForCausalLM.from_pretrained(options.base)
    model = get_peft_model(model, LoraConfig(
        r=4, lora_alpha=8, lora_dropout=options.dropout, target_modules="all-linear",
        task_type="CAUSAL_LM"))

    rows = load_dataset("json", data_files=options.data, split="train",
                        cache_dir=os.path.join(os.path.dirname(options.data), "datasets"))
    rows = rows.map(
        lambda row: tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False)),
        remove_columns=rows.column_names)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output, max_steps=options.steps, save_steps=options.save_steps,
            save_strategy="steps", save_total_limit=2, logging_steps=1, logging_nan_inf_filter=True,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation, learning_rate=1e-3,
            lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True,
            dataloader_num_workers=options.workers,
            enable_jit_checkpoint=bool(options.save_at_signal), seed=0),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    last = get_last_checkpoint(options.output) if os.path.isdir(options.output) else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(options.output)


if __name__ == "__main__":
    main()
