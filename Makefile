# Everything a developer runs. `make help` lists it.
# Only go and make are needed for `build`, `dev` and `test`; the tools of the other targets are pinned in tools/go.mod
# and tools/lint/go.mod and built once into .build/tools/bin.

.DEFAULT_GOAL := help

# Stamping versions from git would relink every binary at every commit.
export GOFLAGS := -buildvcs=false $(GOFLAGS)
export GOWORK := off

BUILD := .build
TOOLS := $(BUILD)/tools/bin

# e2e has its own target: it wants a browser and Terraform, and under CI=true it fails where it lacks them.
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

##@ Test

.PHONY: test
test: ## unit tests and meshes in one process; needs go and make alone
	CGO_ENABLED=0 go test -timeout 20m $(ARGS) $(PACKAGES)

.PHONY: race
race: ## the same under the race detector; needs a C compiler
	CGO_ENABLED=1 go test -race -timeout 30m $(ARGS) $(PACKAGES)

.PHONY: e2e
e2e: build ## real binaries, a browser, Terraform; skips what this machine lacks, under CI=true fails instead
	CGO_ENABLED=0 IAPMESH_BIN=$(CURDIR)/bin/iapmesh go test -count=1 -timeout 20m $(ARGS) ./e2e/...

# A pipe fails where any part of it fails.
fuzz bench: SHELL := /bin/bash
fuzz bench: .SHELLFLAGS := -eo pipefail -c

FUZZTIME ?= 10s

.PHONY: fuzz
fuzz: ## every fuzz target in turn, each for FUZZTIME (10s)
	@CGO_ENABLED=0 go test -list '^Fuzz' $(PACKAGES) \
		| awk '/^Fuzz/ {names[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, names[i]; n = 0}' \
		| while read -r package name; do \
			echo "==> $$package $$name"; \
			CGO_ENABLED=0 go test -run='^$$' -fuzz="^$$name\$$" -fuzztime=$(FUZZTIME) $$package </dev/null || exit 1; \
		done

BENCH ?= .
COUNT ?= 1
# Packages without a benchmark need no test binary. go test runs one benchmark at a time, and none beside a build.
BENCHED = $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n1 dirname | sort -u)

.PHONY: bench
bench: build $(TOOLS)/.tools ## benchmarks into .build/bench.txt (see docs/performance.md); BENCH=regexp COUNT=10, BASE=old.txt compares with an older run
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 IAPMESH_BIN=$(CURDIR)/bin/iapmesh go test -run='^$$' -bench='$(BENCH)' -benchmem -count=$(COUNT) $(BENCHED) | tee $(BUILD)/bench.txt
	$(TOOLS)/benchstat $(BASE) $(BUILD)/bench.txt

##@ Check

.PHONY: lint
lint: $(TOOLS)/.lint ## golangci-lint by .golangci.yml
	$(TOOLS)/golangci-lint run ./...

# The tests come last, so that what fails in seconds is known in seconds.
STEPS := check-generate check-format check-proto vet lint vuln race e2e

.PHONY: check
check: $(TOOLS)/.tools $(TOOLS)/.lint ## everything that a change must pass, each step with its duration
	@failed=; for step in $(STEPS); do \
		printf '\n==> %s\n' "$$step"; start=$$(date +%s); \
		$(MAKE) --no-print-directory "$$step" || failed="$$failed $$step"; \
		printf '<== %s: %d s\n' "$$step" $$(($$(date +%s) - start)); \
	done; \
	[ -z "$$failed" ] || { printf '\nfailed:%s\n' "$$failed"; exit 1; }

# Compares with a fresh copy instead of writing: the tree of whoever checks stays as it is.
.PHONY: check-generate
check-generate: $(TOOLS)/.tools
	@rm -rf $(BUILD)/generated
	@$(TOOLS)/buf generate -o $(BUILD)/generated
	@diff -r --exclude='*.proto' $(BUILD)/generated/proto proto || { echo 'proto/ is not what its .proto files say: run make generate'; exit 1; }

.PHONY: check-format
check-format: $(TOOLS)/.tools
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
		[ -z "$$unformatted" ] || { printf 'gofmt would change:\n%s\n' "$$unformatted"; exit 1; }
	@$(TOOLS)/buf format --diff --exit-code

# A release freezes the API: from then on a change must not break it. Before the first there is nothing to compare with.
.PHONY: check-proto
check-proto: $(TOOLS)/.tools
	@$(TOOLS)/buf lint
	@release=$$(git describe --tags --match 'v*' --abbrev=0 2>/dev/null) \
		|| { echo 'no release yet: no API to break'; exit 0; }; \
		$(TOOLS)/buf breaking --against ".git#tag=$$release"

.PHONY: vet
vet:
	go vet ./...

VULNDB := $(wildcard ../shared/vulndb.tar.xz)

# govulncheck exits with 3 for a finding and with 1 if it could not look.
.PHONY: vuln
vuln: $(TOOLS)/.tools
ifneq ($(VULNDB),)
	@rm -rf $(BUILD)/vulndb && mkdir -p $(BUILD)/vulndb && tar -xJf $(VULNDB) -C $(BUILD)/vulndb --strip-components=1
	@$(TOOLS)/govulncheck -db file://$(CURDIR)/$(BUILD)/vulndb ./...
else
	@$(TOOLS)/govulncheck ./... 2>$(BUILD)/vuln.err; status=$$?; cat $(BUILD)/vuln.err >&2; \
		if [ $$status = 1 ] && grep -q 'fetching vulnerabilities' $(BUILD)/vuln.err; then \
			echo 'SKIPPED: the vulnerability database is out of reach; nothing was checked against it'; exit 0; \
		fi; exit $$status
endif

# Tools

$(TOOLS)/.tools: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	cd tools && CGO_ENABLED=0 go build -o ../$(TOOLS)/ tool
	@touch $@

$(TOOLS)/.lint: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(TOOLS)
	cd tools/lint && CGO_ENABLED=0 go build -o ../../$(TOOLS)/ tool
	@touch $@
