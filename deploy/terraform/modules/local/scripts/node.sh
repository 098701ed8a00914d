#!/usr/bin/env bash
# Starts, stops and removes one node of the local mesh. What it needs comes in the environment, from the resource's input.
set -euo pipefail

say() { printf '%s: %s\n' "$NODE_NAME" "$*" >&2; }
die() { say "$*"; exit 1; }

pid_file="$NODE_DIR.pid"
log_file="$NODE_DIR.log"

running() { [ -s "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; }

# A certificate for users, if none was given: self-signed, good for this machine's own names alone.
certificate() {
  if [ -n "$NODE_CERT_FILE" ]; then return; fi
  NODE_CERT_FILE="$NODE_DIR.tls.crt" NODE_KEY_PEM="$NODE_DIR.tls.key"
  if [ -s "$NODE_CERT_FILE" ]; then return; fi
  command -v openssl >/dev/null || die "no openssl to make a certificate with: set var.certificate"
  (umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=iapmesh local" \
    -addext "subjectAltName=DNS:localhost,DNS:echo.localhost,DNS:auth.localhost,IP:127.0.0.1" \
    -keyout "$NODE_KEY_PEM" -out "$NODE_CERT_FILE" 2>/dev/null)
}

# ready asks the ops listener, with nothing but the shell.
ready() {
  local line
  exec 3<>"/dev/tcp/${NODE_OPS%:*}/${NODE_OPS#*:}" || return 1
  printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
  IFS= read -r line <&3 || true
  exec 3<&- 3>&-
  case "$line" in *" 200 "*) return 0 ;; esac
  return 1
}

start() {
  if running; then say "runs already"; return; fi
  mkdir -p "$NODE_DATA_DIR" && chmod 700 "$NODE_DATA_DIR"
  certificate
  local args=(--name "$NODE_NAME" --region "$NODE_REGION" --roles "$NODE_ROLES" --data-dir "$NODE_DIR"
    --listen-mesh "$NODE_MESH" --listen-gossip "$NODE_GOSSIP" --listen-proxy "$NODE_PROXY" --listen-ops "$NODE_OPS"
    --tls-cert "$NODE_CERT_FILE" --tls-key "$NODE_KEY_PEM")
  if [ -z "$NODE_JOIN" ]; then
    [ -d "$NODE_DIR" ] || "$NODE_BINARY" init "${args[@]}" --trust-domain "$NODE_DOMAIN" --bootstrap-key-file "$NODE_KEY_FILE" --profile-out "$NODE_PROFILE" >&2
  else
    args+=(--join "$NODE_JOIN" --join-key-file "$NODE_KEY_FILE")
  fi
  # Detached from every descriptor of Terraform's, or apply would wait for the node to end.
  setsid "$NODE_BINARY" node "${args[@]}" </dev/null >>"$log_file" 2>&1 &
  echo $! >"$pid_file"
  for _ in $(seq 1 900); do
    running || { tail -n 5 "$log_file" >&2; die "ended at once: see $log_file"; }
    if ready 2>/dev/null; then say "ready"; return; fi
    sleep 0.1
  done
  tail -n 5 "$log_file" >&2
  die "not ready after 90 s: see $log_file"
}

stop() {
  if running; then
    local pid
    pid=$(cat "$pid_file")
    kill "$pid"
    for _ in $(seq 1 150); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null && say "did not end within 15 s: killed"
  fi
  rm -f "$pid_file"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
remove) stop; rm -rf "${NODE_DATA_DIR:?}" ;;
*) die "usage: node.sh start|stop|remove" ;;
esac
