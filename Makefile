# plenum: build, run, test. Every target installs what it lacks, says so, and does nothing twice.
GO ?= go
# What a Debian host lacks: $(call need,PROGRAM,PACKAGE)
need = command -v $(1) >/dev/null 2>&1 || { echo "installing $(2), which provides $(1)"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; }
# What tests need besides Go: browsers, and what makes test hosts. Tests that need root fail without it here
# instead of being left out.
needs = $(call need,chromium,chromium); $(call need,firefox-esr,firefox-esr); $(call need,ip,iproute2); $(call need,ping,iputils-ping); $(call need,pgrep,procps); $(call need,nft,nftables); $(call need,haproxy,haproxy); $(call need,turnserver,coturn); $(call need,ffmpeg,ffmpeg)
TESTFLAGS ?= -shuffle=on -timeout 20m
# The real servers that tests run against; tools/build keeps them in the user's cache. Nomad has some C in it.
servers = $(call need,gcc,gcc libc6-dev); for s in consul vault nomad pebble prometheus promtool jobspec; do tools/build $$s >/dev/null || exit 1; done
test check chaos: export PLENUM_NETLAB = 1

.PHONY: help build run test check lint generate bench networks chaos soak lab lab-hosts clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## the binary, ./plenum: static, no C
	CGO_ENABLED=0 $(GO) build -trimpath -o plenum .

run: build ## start a call server on this machine and print a room link
	./plenum dev

test: ## every test, those with a real browser included
	@$(needs); $(servers)
	$(GO) test $(TESTFLAGS) $$($(GO) list ./... | grep -v -e /overlay -e /agent$$)
	$(GO) test -p 1 -parallel 4 $(TESTFLAGS) ./overlay/... # those that count each lost packet run alone
	$(GO) test -p 1 -parallel 1 $(TESTFLAGS) ./agent

check: lint ## the whole gate: format, vet, staticcheck, govulncheck, and every test with the race detector
	@$(needs); $(servers)
	CGO_ENABLED=1 $(GO) test -race $(TESTFLAGS) ./...

lint: ## format, vet, staticcheck, known vulnerabilities, types of the web client
	@test -z "$$(gofmt -l .)" || { echo "run gofmt -w on:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@$(call need,curl,curl)
	@if curl -sfm 10 https://vuln.go.dev/index/db.json >/dev/null; then $(GO) tool govulncheck ./...; \
	else echo "govulncheck left out: its database at vuln.go.dev is not reachable from here"; fi

generate: ## bundle the web client anew
	$(GO) generate ./signaling/web

bench: ## what forwarding a packet costs, as a ratio to the limit: the tables of docs/PERFORMANCE.md, in ten minutes
	$(GO) test -run '^$$' -bench 'Cost|Rooms|Scale' -benchtime 1x -timeout 60m . $(BENCHFLAGS)
	$(GO) test -run '^$$' -bench 'Storm|Idle' -benchtime 1x -timeout 60m ./signaling/client/load

networks: ## calls over the standard bad networks: the table of docs/PERFORMANCE.md, in three minutes
	$(GO) test -run '^$$' -bench Networks -benchtime 1x -timeout 20m . $(BENCHFLAGS)

chaos: ## cuts, restarts and faults of hosts in full length: the recovery times of docs/PERFORMANCE.md, in some hours
	PLENUM_CHAOS=1 $(GO) test -v -count=1 -run 'Cuts|Restarts|Asleep|NewAddress|Flood|School|Killed|Waterfall|Loud|OneOwner|HostLost|Drained|Uplink|StressRises' -timeout 60m .
	PLENUM_CHAOS=1 $(GO) test -v -count=1 -timeout 60m ./agent
	PLENUM_CHAOS=1 $(GO) test -v -count=1 -timeout 60m -run TestLab ./overlay/netlab/lab

soak: ## an hour of people who come and go: memory, goroutines and sockets stay as they were
	PLENUM_SOAK=1 $(GO) test -v -count=1 -run TestSoak -timeout 90m .

lab: build ## shards, edges and bridges on three test hosts in two regions, and a room link; LAB_ONCE=1 proves it and ends
	@$(needs); $(servers)
	$(GO) run ./overlay/netlab/lab -call -plenum ./plenum $(LABFLAGS)

lab-hosts: build ## a cluster on test hosts: a server (SERVERS=3: three), three hosts, two regions; LAB_ONCE=1 proves it and ends
	@$(needs); $(servers)
	$(GO) run ./overlay/netlab/lab -plenum ./plenum

clean: ## what build left
	rm -rf plenum build
