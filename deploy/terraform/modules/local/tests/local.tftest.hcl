# Applies the module for real: three daemons, one mesh, asked by its own command line, torn down at the end.
# IAPMESH_BIN and a data directory come from outside: TF_VAR_binary, TF_VAR_data_dir.

run "deploy" {
  assert {
    condition     = length(output.nodes) == 3
    error_message = "want a node in each of three regions"
  }
  assert {
    condition     = output.bootstrap_key_file == "${var.data_dir}/bootstrap.key"
    error_message = "the bootstrap key's file is not where the module says"
  }
}

run "serves" {
  module {
    source = "./tests/verify"
  }
  variables {
    profile = run.deploy.profile
    nodes   = 3
  }
}

run "nothing_to_do" {
  command = plan

  assert {
    condition     = terraform_data.founder.id != ""
    error_message = "the founder is not in the state"
  }
}
