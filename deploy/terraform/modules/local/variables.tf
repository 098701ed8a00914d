variable "binary" {
  description = "Path of the iapmesh binary."
  type        = string
}

variable "data_dir" {
  description = "Absolute path of a directory for the nodes' data. Destroying the mesh removes it."
  type        = string

  validation {
    condition     = startswith(var.data_dir, "/") && length(var.data_dir) > 1
    error_message = "data_dir: want an absolute path, and not the root."
  }
}

variable "regions" {
  description = "A node is started in each. The first founds the mesh; use three, so that the loss of one leaves a quorum."
  type        = list(string)
  default     = ["eu-west", "us-east", "ap-south"]

  validation {
    condition     = length(var.regions) > 0 && length(distinct(var.regions)) == length(var.regions)
    error_message = "regions: want at least one, each once."
  }
}

variable "base_port" {
  description = "The nodes take ports from here on, ten each, all on 127.0.0.1."
  type        = number
  default     = 28400

  validation {
    condition     = var.base_port >= 1024 && var.base_port <= 65000
    error_message = "base_port: want 1024 to 65000."
  }
}

variable "trust_domain" {
  description = "Of the nodes' SPIFFE IDs."
  type        = string
  default     = "local.iapmesh.test"
}

variable "certificate" {
  description = "PEM files that users' browsers see. Without them each node gets a self-signed certificate for *.localhost."
  type        = object({ cert_file = string, key_file = string })
  default     = null
}
