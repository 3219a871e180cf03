"""Networks on a device, and the memory that they share.

networks parts load export join    classes, where weights are, a checkpoint as a Model, and as files again
tokenize encode                    prompts -> chunks of tokens -> Conditioning
clip_vocabulary t5 t5_vocabulary   the two kinds of text encoder, and the tokenizers of files without one
textual_inversion image_encoder    words and pictures that text encoders do not know
latents preview                    pictures <-> latents, and a quick look at them
placement room memory pool part_shelf   where networks run, how much memory they take, and which are kept
"""
