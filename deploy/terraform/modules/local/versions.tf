terraform {
  required_version = ">= 1.11" # write-only values and ephemeral resources: nothing secret belongs in a state file
}
