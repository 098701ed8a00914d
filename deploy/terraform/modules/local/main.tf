# A whole mesh on this machine, as real processes, by Terraform's builtin provider alone. The bootstrap key goes from `iapmesh init`
# to a file of mode 0600 and from there into the joining nodes: Terraform never reads it, so that no plan and no state holds it.

locals {
  nodes = {
    for i, region in var.regions : region => {
      name   = "${region}-1"
      region = region
      # The first collects the audit trail as well; the bootstrap key does not grant that role.
      roles  = i == 0 ? "control,proxy,aggregator" : "control,proxy"
      dir    = "${var.data_dir}/${region}"
      mesh   = "127.0.0.1:${var.base_port + 10 * i}"
      gossip = "127.0.0.1:${var.base_port + 10 * i + 1}"
      proxy  = "127.0.0.1:${var.base_port + 10 * i + 2}"
      ops    = "127.0.0.1:${var.base_port + 10 * i + 3}"
    }
  }
  founder  = local.nodes[var.regions[0]]
  key_file = "${var.data_dir}/bootstrap.key"
  profile  = "${var.data_dir}/admin.json"
  common = {
    script    = "${abspath(path.module)}/scripts/node.sh"
    binary    = abspath(var.binary)
    data_dir  = var.data_dir
    key_file  = local.key_file
    profile   = local.profile
    domain    = var.trust_domain
    cert_file = try(var.certificate.cert_file, "")
    key_pem   = try(var.certificate.key_file, "")
  }
}

resource "terraform_data" "founder" {
  input = merge(local.common, local.founder, { join = "" })

  provisioner "local-exec" {
    command     = "\"$NODE_SCRIPT\" start"
    environment = { for k, v in self.input : "NODE_${upper(k)}" => v }
  }
  # A destroy provisioner sees only self: all that it needs is in input.
  provisioner "local-exec" {
    when        = destroy
    command     = "\"$NODE_SCRIPT\" remove"
    environment = { for k, v in self.input : "NODE_${upper(k)}" => v }
  }
}

resource "terraform_data" "node" {
  for_each = { for region, node in local.nodes : region => node if region != var.regions[0] }

  input = merge(local.common, each.value, { join = local.founder.mesh })

  provisioner "local-exec" {
    command     = "\"$NODE_SCRIPT\" start"
    environment = { for k, v in self.input : "NODE_${upper(k)}" => v }
  }
  provisioner "local-exec" {
    when        = destroy
    command     = "\"$NODE_SCRIPT\" stop"
    environment = { for k, v in self.input : "NODE_${upper(k)}" => v }
  }

  depends_on = [terraform_data.founder]
}
