output "nodes" {
  description = "The nodes by region, with their addresses."
  value = {
    for region, node in local.nodes : region => {
      name = node.name, mesh = node.mesh, proxy = node.proxy, ops = node.ops
    }
  }
  depends_on = [terraform_data.node]
}

output "profile" {
  description = "The administrator's profile: iapmesh --profile FILE status."
  value       = local.profile
  depends_on  = [terraform_data.founder]
}

output "bootstrap_key_file" {
  description = "Where the bootstrap key lies, mode 0600: the path, never the key."
  value       = local.key_file
  depends_on  = [terraform_data.founder]
}
