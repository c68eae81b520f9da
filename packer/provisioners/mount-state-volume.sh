#!/bin/bash
# Give the state a volume of its own, where the builder has one for it: a small volume is filled from its snapshot in
# seconds, a whole root volume in minutes.
set -euo pipefail
: "${STATE_VOLUME_GIGABYTES:?}"

if [ "$STATE_VOLUME_GIGABYTES" = 0 ]; then
  echo "the state stands on the root volume"
  exit 0
fi
if mountpoint --quiet /opt/transcribe/gpu_state; then exit 0; fi

device=${STATE_DEVICE:-} # named where it can't be recognized: a test has no volume of EBS
if [ -z "$device" ]; then # the one volume of EBS that holds nothing yet
  while read -r name; do
    if grep -qs "Elastic Block Store" "/sys/block/${name#/dev/}/device/model" && [ -z "$(lsblk -nro FSTYPE,MOUNTPOINT "$name" | tr -d '[:space:]')" ]; then
      device=$name
    fi
  done < <(lsblk -dnpro NAME)
fi
[ -n "$device" ] || { echo "there is no empty volume for the state" >&2; exit 1; }

# a label, since a device has another name on another instance
mkfs.ext4 -q -L transcribe-state "$device"
echo "LABEL=transcribe-state /opt/transcribe/gpu_state ext4 noatime,nofail 0 2" >>/etc/fstab
mount "$device" /opt/transcribe/gpu_state
echo "the state stands on $device"
