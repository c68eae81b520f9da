# Alone in its file: packer before 1.7 does not know this block, and the driver leaves the file out there.
packer {
  required_version = ">= 1.7.0"

  required_plugins {
    amazon = {
      version = ">= 1.2.8, < 2.0.0"
      source  = "github.com/hashicorp/amazon"
    }
  }
}
