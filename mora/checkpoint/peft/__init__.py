"""PEFT's files: LoRA and DoRA both ways, and any other update as a LoRA of lower rank."""
