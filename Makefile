# Orlop. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4

# What needs root runs through sudo where we are not root, with Go kept on the path.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo env PATH="$$PATH" HOME="$$HOME")
LDFLAGS := -s -w -X main.version=$(VERSION)
# orlop-oci begins by instructions of its own (cmd/orlop-oci/entry.go).
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -ldflags './cmd/orlop-oci=$(LDFLAGS) -E main.entry'

.PHONY: up down build test lint fuzz vuln bench help generate clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The linker writes through a mapping, page by page, and in single pages the file is in the page
# cache, which each start maps one by one. A copy is there in large folios.
build: ## build bin/orlop, orlop-keeper, orlop-init and the example application
	@$(BUILD) -o bin/linked/ ./cmd/... ./examples/notes
	@install bin/linked/* bin/ && rm -r bin/linked

up: ## install what is missing, build, start the daemon and run examples/notes.yaml
	@$(SUDO) deploy/packages.sh run
	@echo 'building'
	@$(MAKE) --no-print-directory build
	@$(SUDO) deploy/up.sh

down: ## stop everything that `make up` made; PURGE=1 removes the data too
	@$(SUDO) env PURGE='$(PURGE)' deploy/down.sh

test: ## run every test: linters, packages with the race detector, end to end, cgroup-v2 machine
	@$(SUDO) deploy/packages.sh test
	@$(MAKE) --no-print-directory lint
	@$(SUDO) test/run.sh

lint: ## gofmt, go vet and staticcheck
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); [ -z "$$out" ] || { echo "gofmt wants: $$out" >&2; exit 1; }
	@$(GO) vet ./... && $(GO) vet -tags faults ./... && $(GO) vet -tags guards ./...
	@$(GO) run $(STATICCHECK) ./...

fuzz: ## search each fuzz target for FUZZTIME (10s); PATTERN chooses
	@$(SUDO) env FUZZTIME='$(FUZZTIME)' PATTERN='$(PATTERN)' test/fuzz.sh

vuln: ## look for known vulnerabilities in what is linked in (needs the network)
	@$(GO) run $(GOVULNCHECK) ./...

bench: ## measure Orlop beside containerd with runc and podman; writes docs/benchmarks.md
	@$(SUDO) deploy/packages.sh bench
	@$(MAKE) --no-print-directory build
	@$(SUDO) env PATH="$$PATH" $(GO) run ./bench -out docs/benchmarks.md

generate: ## make generated code again
	@$(GO) generate ./...

clean: ## remove what was built
	@rm -rf bin
