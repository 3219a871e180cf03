"""How the embedded model is made from nothing (docs/mini.md).

scratch      all stages in order, resumed where they were stopped
artwork captions augment prompts drawings pictures   openly licensed artwork, and what is said of it
tokenizer autoencoder discriminator decoder denoiser image_encoder   one file a network that is trained
networks mini export    their sizes, the recipe, and the folder that comes out
judge        trains the judge of lifecycle/evaluation
sampling curve image_encoder_folder   pictures and numbers on the way
"""
