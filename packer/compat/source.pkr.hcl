# For packer 1.6.6: as ../source.pkr.hcl, without metadata_options and imds_support. The driver sets IMDSv2 on the
# image afterwards; an account that demands it of the builder too needs a newer packer.
source "amazon-ebs" "worker" {
  region              = var.region
  custom_endpoint_ec2 = var.ec2_endpoint
  ami_name            = var.ami_name
  ami_description     = "Transcription worker with ${var.model}, from ${var.base_image_name}"
  source_ami          = var.source_image_id

  instance_type       = var.spot ? null : var.instance_types[0]
  spot_instance_types = var.spot ? var.instance_types : null
  spot_price          = var.spot ? "auto" : null
  availability_zone   = var.zone
  subnet_id           = var.subnet_id

  communicator              = "ssh"
  ssh_username              = var.ssh_username
  ssh_host                  = var.ssh_host
  ssh_port                  = var.ssh_port
  ssh_private_key_file      = var.ssh_private_key_file
  ssh_timeout               = "10m"
  ssh_clear_authorized_keys = true

  # encrypted from the start, by the account's own key: nothing has to be copied for it afterwards
  launch_block_device_mappings {
    device_name           = "/dev/sda1"
    volume_type           = "gp3"
    volume_size           = var.volume_gigabytes
    iops                  = 4000
    throughput            = 500
    encrypted             = true
    delete_on_termination = true
  }
  dynamic "launch_block_device_mappings" {
    for_each = var.state_volume_gigabytes > 0 ? [var.state_volume_gigabytes] : []
    content {
      device_name           = "/dev/sdf"
      volume_type           = "gp3"
      volume_size           = launch_block_device_mappings.value
      iops                  = 3000
      throughput            = 250
      encrypted             = true
      delete_on_termination = true
    }
  }

  # what runs while it bakes is found by these tags, should anything be left behind
  run_tags        = merge(var.tags, { Name = "${var.ami_name}-builder", "transcribe:role" = "builder" })
  run_volume_tags = merge(var.tags, { Name = "${var.ami_name}-builder", "transcribe:role" = "builder" })
  tags            = merge(var.tags, { Name = var.ami_name, "transcribe:role" = "image" })
  snapshot_tags   = merge(var.tags, { Name = var.ami_name, "transcribe:role" = "image" })
}
