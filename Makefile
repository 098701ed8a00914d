# Everything a developer runs. `make help` lists it.
# Only go and make are needed for `build`, `dev` and `test`; the tools of the other targets are pinned in tools/go.mod
# and tools/lint/go.mod and built once into .build/tools/bin.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Stamping versions from git would relink every binary at every commit.
export GOFLAGS := -buildvcs=false $(GOFLAGS)
export GOWORK := off

BUILD := .build
TOOLS := $(BUILD)/tools/bin

# e2e has its own target: it wants root and a browser, and under CI=true it fails where it lacks them.
PACKAGES = $$(go list ./... | grep -v '/e2e')

##@ Work

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/iapmesh, static
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/iapmesh

.PHONY: dev
dev: build ## run a whole mesh on this machine until Ctrl-C; ARGS='…' passes flags on
	@exec bin/iapmesh dev $(ARGS)

.PHONY: generate
generate: $(TOOLS)/.tools ## write the Go code of proto/ beside its .proto files
	$(TOOLS)/buf generate

# Tools

$(TOOLS)/.tools: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	cd tools && CGO_ENABLED=0 go build -o ../$(TOOLS)/ tool
	@touch $@

$(TOOLS)/.lint: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(TOOLS)
	cd tools/lint && CGO_ENABLED=0 go build -o ../../$(TOOLS)/ tool
	@touch $@
