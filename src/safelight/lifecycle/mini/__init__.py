"""Train the embedded model from scratch (docs/mini.md).

scratch      all stages in order; a stopped run resumes
artwork captions augment prompts drawings pictures   openly licensed artwork, and its captions
tokenizer autoencoder discriminator decoder denoiser image_encoder   one file per trained network
networks mini export    their sizes, the recipe, and the exported folder
train_judge  trains the judge of lifecycle/evaluation
sampling metrics_csv image_encoder_folder   samples and metrics during training
"""
