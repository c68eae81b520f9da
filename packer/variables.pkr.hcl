# Everything that differs between two bakes. `run-transcription bake` gives all of them; release.pkrvars.hcl has what a
# release pins. regex_replace, because packer 1.6.6 has no other function that knows patterns.

variable "region" {
  type        = string
  description = "Region in which the image is made."
  validation {
    condition     = var.region != "" && regex_replace(var.region, "^[a-z]{2}(-[a-z]+)+-[0-9]$", "") == ""
    error_message = "The region must be the code of one, such as eu-west-1."
  }
}

variable "ami_name" {
  type        = string
  description = "Name of the image; no other of this account and region may have it."
  validation {
    condition     = var.ami_name != "" && regex_replace(var.ami_name, "^[A-Za-z0-9()./_-]{3,128}$", "") == ""
    error_message = "The ami_name must be 3 to 128 letters, digits or ()./_- ."
  }
}

variable "source_image_id" {
  type        = string
  description = "Image that the builder starts from: the base image, or one of ours with the same packages in it."
  validation {
    condition     = var.source_image_id != "" && regex_replace(var.source_image_id, "^ami-[0-9a-f]{8,17}$", "") == ""
    error_message = "The source_image_id must be that of an image, such as ami-0123456789abcdef0."
  }
}

variable "base_image_id" {
  type        = string
  default     = ""
  description = "Image that all this stands on, in this region; \"\": the driver looks it up."
  validation {
    condition     = regex_replace(var.base_image_id, "^ami-[0-9a-f]{8,17}$", "") == ""
    error_message = "The base_image_id must be that of an image, such as ami-0123456789abcdef0."
  }
}

variable "base_image_name" {
  type        = string
  default     = ""
  description = "Name of the base image: the same in all regions, and what a person looks for."
  validation {
    condition     = length(var.base_image_name) <= 128
    error_message = "The base_image_name must be at most 128 characters."
  }
}

variable "minimum_driver" {
  type        = number
  default     = 580
  description = "Oldest major version of NVIDIA's driver that torch's CUDA runs on: CUDA 13 wants 580."
  validation {
    condition     = var.minimum_driver >= 450
    error_message = "The minimum_driver must be a major version, such as 580."
  }
}

variable "log_agent" {
  type        = string
  default     = "/opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl"
  description = "Program of the base image that ships the workers' log, and which a stack starts; \"\": the image does without."
  validation {
    condition     = regex_replace(var.log_agent, "^/[A-Za-z0-9._/-]+$", "") == ""
    error_message = "The log_agent must be an absolute path."
  }
}

variable "model" {
  type        = string
  description = "Hugging Face id of the model, or demo."
  validation {
    condition     = var.model != "" && regex_replace(var.model, "^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$", "") == ""
    error_message = "The model must be a Hugging Face id, such as openai/whisper-large-v3-turbo, or demo."
  }
}

variable "model_revision" {
  type        = string
  default     = ""
  description = "Commit of the model on Hugging Face; \"\" for demo alone, which has none."
  validation {
    condition     = regex_replace(var.model_revision, "^[0-9a-f]{40}$", "") == ""
    error_message = "The model_revision must be a commit, 40 hex digits: a branch names something else tomorrow."
  }
}

variable "hf_token" {
  type        = string
  default     = ""
  sensitive   = true
  description = "Token for a gated model. Given as PKR_VAR_hf_token, never on a command line."
  validation {
    condition     = regex_replace(var.hf_token, "^[A-Za-z0-9_]*$", "") == ""
    error_message = "The hf_token must be letters, digits and _ ."
  }
}

variable "dtype" {
  type        = string
  default     = "float16"
  description = "Dtype of the state."
  validation {
    condition     = contains(["float16", "bfloat16", "float32"], var.dtype)
    error_message = "The dtype must be float16, bfloat16 or float32."
  }
}

variable "torch_source" {
  type        = string
  default     = "lock"
  description = "Where torch comes from: lock (packer/torch-cuda.lock), or a folder of the builder that holds it."
  validation {
    condition     = var.torch_source == "lock" || var.torch_source != "" && regex_replace(var.torch_source, "^/[A-Za-z0-9._/-]+$", "") == ""
    error_message = "The torch_source must be lock, or an absolute path."
  }
}

variable "parts" {
  type        = string
  description = "Folder on this machine with what is brought to the builder: provisioners, rootfs, wheel and locks."
  validation {
    condition     = length(var.parts) > 0
    error_message = "The parts must be a folder."
  }
}

variable "output" {
  type        = string
  description = "Folder on this machine for the manifest and the bill of materials."
  validation {
    condition     = length(var.output) > 0
    error_message = "The output must be a folder."
  }
}

variable "instance_types" {
  type        = list(string)
  description = "Types that the builder may have: for spot all at once, else the first."
  validation {
    condition     = length(var.instance_types) > 0 && regex_replace(join(",", var.instance_types), "^[a-z0-9-]+[.][a-z0-9-]+(,[a-z0-9-]+[.][a-z0-9-]+)*$", "") == ""
    error_message = "The instance_types must be types of instances, such as m7i.xlarge."
  }
}

variable "spot" {
  type        = bool
  default     = true
  description = "Whether the builder is a spot instance."
  validation {
    condition     = var.spot == true || var.spot == false
    error_message = "The spot must be true or false."
  }
}

variable "zone" {
  type        = string
  default     = ""
  description = "Availability zone of the builder; \"\": any."
  validation {
    condition     = regex_replace(var.zone, "^[a-z]{2}(-[a-z0-9]+)+-[0-9][a-z]$", "") == ""
    error_message = "The zone must be that of a region, such as eu-west-1a."
  }
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "Subnet of the builder; \"\": the default one of its zone."
  validation {
    condition     = regex_replace(var.subnet_id, "^subnet-[0-9a-f]{8,17}$", "") == ""
    error_message = "The subnet_id must be that of a subnet."
  }
}

variable "volume_gigabytes" {
  type        = number
  default     = 75
  description = "Size of the root volume in GB: the base image with its CUDA folders takes more than half of it."
  validation {
    condition     = var.volume_gigabytes >= 8 && var.volume_gigabytes <= 1000
    error_message = "The volume_gigabytes must be from 8 to 1000."
  }
}

variable "state_volume_gigabytes" {
  type        = number
  default     = 0
  description = "Size of a volume for the state alone in GB; 0: it stands on the root volume."
  validation {
    condition     = var.state_volume_gigabytes >= 0 && var.state_volume_gigabytes <= 100
    error_message = "The state_volume_gigabytes must be from 0 to 100."
  }
}

variable "minimum_free_gigabytes" {
  type        = number
  default     = 5
  description = "Free disk that an image must leave for recordings and logs, in GB."
  validation {
    condition     = var.minimum_free_gigabytes >= 1
    error_message = "The minimum_free_gigabytes must be at least 1."
  }
}

variable "ssh_username" {
  type        = string
  default     = "ubuntu"
  description = "User of the base image."
  validation {
    condition     = regex_replace(var.ssh_username, "^[a-z_][a-z0-9_-]*$", "") == ""
    error_message = "The ssh_username must be the name of a user."
  }
}

variable "ssh_host" {
  type        = string
  default     = ""
  description = "Address of the builder where it is not its public one; \"\": the public one."
  validation {
    condition     = regex_replace(var.ssh_host, "^[A-Za-z0-9.:-]*$", "") == ""
    error_message = "The ssh_host must be a host name or an address."
  }
}

variable "ssh_port" {
  type        = number
  default     = 22
  description = "Port of the builder's ssh."
  validation {
    condition     = var.ssh_port > 0 && var.ssh_port < 65536
    error_message = "The ssh_port must be from 1 to 65535."
  }
}

variable "ssh_private_key_file" {
  type        = string
  default     = ""
  description = "Key for the builder; \"\": packer makes one for this build alone."
  validation {
    condition     = length(var.ssh_private_key_file) < 4096
    error_message = "The ssh_private_key_file must be a path."
  }
}

variable "ec2_endpoint" {
  type        = string
  default     = ""
  description = "Address of EC2 where it is not AWS's own: an emulator's, or a private endpoint's."
  validation {
    condition     = regex_replace(var.ec2_endpoint, "^https?://[^ ]+$", "") == ""
    error_message = "The ec2_endpoint must be an http address."
  }
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "Tags of image and snapshots: source image, version, git commit, model and revision."
  validation {
    condition     = length(var.tags) <= 40
    error_message = "The tags must be at most 40: EC2 takes 50."
  }
}
