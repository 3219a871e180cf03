"""Fine-tuning: a folder of pictures becomes a LoRA, an embedding or a model.

lora dreambooth embedding full   the recipes, each a page to read and to copy; recipe holds their options
train run results                a run from its options to its saved files
loop optimizer rates noising averaging checkpoint seeds unbroken   what recipes share
dataset sources buckets latent_cache class_pictures wording reading   data, from files to batches
privacy secret_noise accounting  differential privacy: the gradients, their noise, and what they promise
membership                       what a model betrays of its data
news                             what a run reports
check drawing lora_layers        data looked over first; samples drawn on the way; the layers a LoRA trains
"""
