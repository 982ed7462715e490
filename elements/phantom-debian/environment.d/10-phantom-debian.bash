export DISTRO_NAME=debian
export DIB_INIT_SYSTEM=systemd
export DIB_RELEASE=${DIB_RELEASE:-bookworm}
export PHANTOM_KERNEL=${PHANTOM_KERNEL:-generic}
