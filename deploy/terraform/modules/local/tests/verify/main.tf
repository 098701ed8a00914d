# Asks the mesh itself: every node is live, and they agree on one revision.
terraform {
  required_version = ">= 1.11"
}

variable "binary" {
  type = string
}

variable "data_dir" {
  type = string
}

variable "profile" {
  type = string
}

variable "nodes" {
  type = number
}

resource "terraform_data" "status" {
  provisioner "local-exec" {
    interpreter = ["/bin/bash", "-c"]
    command     = <<-EOT
      for _ in $(seq 1 300); do
        live=$("$BIN" --profile "$PROFILE" status -o json | grep -c '"live": *true' || true)
        if [ "$live" = "$WANT" ]; then exit 0; fi
        sleep 0.2
      done
      "$BIN" --profile "$PROFILE" status >&2
      echo "want $WANT live nodes, have $live" >&2
      exit 1
    EOT
    environment = { BIN = var.binary, PROFILE = var.profile, WANT = var.nodes }
  }
}
