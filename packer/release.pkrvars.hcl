# What a release is made from. `run-transcription bake --pin-base` writes id and name of the base image, as the public
# parameter /aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id names it then;
# while they are empty each bake looks there.
base_image_id   = ""
base_image_name = ""

minimum_driver = 580

model          = "openai/whisper-large-v3-turbo"
model_revision = "41f01f3fe87f28c78e2fbf8b568835947dd65ed9"
