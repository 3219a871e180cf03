"""Fine-tuning: a folder of pictures becomes a LoRA, an embedding or a model.

lora dreambooth embedding full   the recipes, one readable page each; recipe holds their options
train run results                a run from its options to its saved files
loop optimizer rates noising averaging checkpoint seeds defer_interrupts   shared by the recipes
dataset sources buckets latent_cache class_pictures caption_augment caption_encoder   data, from files to batches
privacy secret_noise accounting  differential privacy: clipped gradients, their noise, the guarantee
membership                       losses for membership inference
events                           events of a run
check drawing lora_layers        checks of the data; sample pictures during training; the layers a LoRA trains
"""
