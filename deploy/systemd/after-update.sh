#!/bin/sh
# Run by `edge update install --then` when another bundle is used: computes the kiosk's prefix for it, and starts the
# server again, which fails unless it gets ready. Then the update goes back, and runs this once more.
set -eu
edge=/opt/edge/bin/edge
kiosk=/srv/kiosk/guide

"$edge" prefix build --no-config /srv/kiosk/glm4/current "$kiosk/kiosk.prefix" \
    --system-file "$kiosk/system.txt" --engine onnx --max-context 4096
systemctl restart edge-kiosk.service
