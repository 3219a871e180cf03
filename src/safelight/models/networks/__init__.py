"""Networks on a device, and the memory they share.

networks components load           network classes, where a checkpoint's weights are, a checkpoint as a `Model`
export join                        a checkpoint written to files again
tokenize encode                    prompts -> chunks of tokens -> Conditioning
clip_vocabulary t5 t5_vocabulary   the two kinds of text encoder, and tokenizers for files that carry none
textual_inversion image_encoder    embeddings for new words, and images as conditioning
latents preview                    images <-> latents, and small previews of latents
placement size_estimate memory pool part_cache   device and dtype, memory use, and the networks held in memory
"""
