#!/bin/bash
# Remove what belongs to the builder and not to the image: keys, tokens, histories, logs, caches, its identity.
set -euo pipefail
shopt -s nullglob dotglob

for home in /root /home/*; do
  rm -rf "$home"/.{bash,python,zsh}_history "$home"/.{lesshst,viminfo,wget-hsts,netrc,git-credentials,pypirc} \
    "$home"/.{aws,azure,docker,gnupg,cache,triton,npmrc} "$home"/.config/{gcloud,gh,pip,huggingface} \
    "$home"/.huggingface "$home"/.ssh/{id_*,known_hosts*,config}
  # EC2 writes its key here at the first boot of each instance
  rm -f "$home"/.ssh/authorized_keys*
done
rm -f /etc/ssh/ssh_host_*
: >/etc/machine-id
rm -rf /opt/transcribe/cache/* /var/tmp/* /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
if command -v cloud-init >/dev/null; then cloud-init clean --logs; fi
if command -v journalctl >/dev/null; then journalctl --quiet --rotate --vacuum-size=1 2>/dev/null || true; fi
# logs are emptied where a program may hold them open, and removed where they are old ones
find /var/log -type f \( -name '*.gz' -o -name '*.[0-9]' -o -name '*.journal' -o -name '*.old' \) -delete
find /var/log -type f -size +0 -exec truncate --size=0 {} +
# packer's own scripts and ours go last: see write-bill.sh
find /tmp -mindepth 1 -maxdepth 1 ! -name transcribe-bake ! -name 'script_*.sh' ! -name 'varfile_*' -exec rm -rf {} +
