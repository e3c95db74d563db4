# Debian keeps nft and conntrack where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin

FUZZTIME ?= 10s

.PHONY: build test lint check fuzz bench cover tools

build: export CGO_ENABLED = 0
build:
	go build -trimpath -o curfew .

# Everything CI does. It needs no root, only user namespaces.
test: tools lint check

tools:
	@.ci/tools

lint:
	@.ci/lint

check:
	@.ci/test ./...

fuzz: tools
	@FUZZTIME=$(FUZZTIME) .ci/fuzz

bench: tools
	go test -p 1 -run '^$$' -bench . -benchmem ./...

cover: tools
	@mkdir -p dist
	go test -p 1 -coverpkg=./... -coverprofile=dist/cover.out ./...
	go tool cover -func=dist/cover.out | tail -n 1
