# The steps, the same for both sources. Each is a script that takes its inputs from the environment; the token is in
# that of one of them, and in a file that is gone before its script begins.
locals {
  brought = "/tmp/transcribe-bake"

  # the environment comes from a file: a command line can be read by everybody on the machine
  execute            = ". '{{.EnvVarFile}}'; chmod 0755 '{{.Path}}'; ${local.as_root}"
  execute_with_token = ". '{{.EnvVarFile}}'; rm -f '{{.EnvVarFile}}'; chmod 0755 '{{.Path}}'; ${local.as_root}"
  as_root            = "if [ \"$(id -u)\" = 0 ]; then '{{.Path}}'; else sudo -E '{{.Path}}'; fi"

  inputs = [
    "BROUGHT=${local.brought}",
    "MODEL=${var.model}",
    "MODEL_REVISION=${var.model_revision}",
    "DTYPE=${var.dtype}",
    "TORCH_SOURCE=${var.torch_source}",
    "MINIMUM_DRIVER=${var.minimum_driver}",
    "LOG_AGENT=${var.log_agent}",
    "MINIMUM_FREE_GIGABYTES=${var.minimum_free_gigabytes}",
    "STATE_VOLUME_GIGABYTES=${var.state_volume_gigabytes}",
    "BASE_IMAGE_ID=${var.base_image_id}",
    "BASE_IMAGE_NAME=${var.base_image_name}",
  ]
}

build {
  sources = ["source.amazon-ebs.worker"]

  provisioner "shell" {
    inline = ["rm -rf ${local.brought} && mkdir -m 0755 ${local.brought}"]
  }

  provisioner "file" {
    source      = "${var.parts}/"
    destination = local.brought
  }

  provisioner "shell" {
    scripts = [
      "${var.parts}/provisioners/prepare-builder.sh",
      "${var.parts}/provisioners/mount-state-volume.sh",
      "${var.parts}/provisioners/install-python.sh",
      "${var.parts}/provisioners/install-dependencies.sh",
      "${var.parts}/provisioners/install-worker.sh",
      "${var.parts}/provisioners/precompile-bytecode.sh",
    ]
    environment_vars = local.inputs
    use_env_var_file = true
    execute_command  = local.execute
  }

  provisioner "shell" {
    script           = "${var.parts}/provisioners/cache-model.sh"
    environment_vars = concat(local.inputs, ["HF_TOKEN=${var.hf_token}"])
    use_env_var_file = true
    execute_command  = local.execute_with_token
  }

  provisioner "shell" {
    scripts = [
      "${var.parts}/provisioners/persist-gpu-state.sh",
      "${var.parts}/provisioners/install-units.sh",
      "${var.parts}/provisioners/clean-up.sh",
      "${var.parts}/provisioners/validate-image.sh",
      "${var.parts}/provisioners/write-bill.sh",
    ]
    environment_vars = local.inputs
    use_env_var_file = true
    execute_command  = local.execute
  }

  provisioner "file" {
    direction   = "download"
    source      = "/opt/transcribe/manifest.json"
    destination = "${var.output}/bill.json"
  }

  post-processor "manifest" {
    output = "${var.output}/manifest.json"
  }
}
