// Package internal_test checks the layers of the tree (docs/design/layers.md):
// imports point downward only.
package internal_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/orlop-io/orlop/"

// layer returns the rank of a package of this module, its layer's name, and for a
// domain the domain's name. Higher ranks may import lower ones.
func layer(path string) (rank int, name, domain string) {
	rel := strings.TrimPrefix(path, module)
	part := strings.Split(rel, "/")
	switch part[0] {
	case "cmd", "test", "bench", "examples":
		return 5, "commands", ""
	case "api":
		return 0, "api", "" // generated; who may use it is checked apart
	case "internal":
		if len(part) == 1 {
			return 5, "commands", "" // this test
		}
		switch part[1] {
		case "server":
			return 4, "servers", ""
		case "pod", "image", "network", "volume", "object", "backup", "migrate":
			return 3, "domains", part[1]
		case "platform":
			return 2, "platform", ""
		case "base":
			return 1, "base", ""
		}
	}
	return -1, rel, ""
}

// protocolTypes must not appear in a domain, which speaks plain Go.
var protocolTypes = []string{"k8s.io/api", "k8s.io/apimachinery", "google.golang.org/grpc", "connectrpc.com/", "google.golang.org/protobuf", "github.com/spf13/"}

// allowed are exceptions to protocolTypes, each with its reason.
var allowed = map[string]string{
	// A gRPC probe is a call of a standard service of the container, not a protocol that the domain serves.
	module + "internal/pod/probe": "google.golang.org/grpc",
}

// check returns what is wrong with pkg importing imp, or "".
func check(pkg, imp string) string {
	rank, name, domain := layer(pkg)
	if rank < 0 {
		return fmt.Sprintf("%s is in no layer", pkg)
	}
	if !strings.HasPrefix(imp, module) {
		if domain == "" {
			return ""
		}
		for _, p := range protocolTypes {
			if strings.HasPrefix(imp, p) && !(allowed[pkg] != "" && strings.HasPrefix(imp, allowed[pkg])) {
				return fmt.Sprintf("%s: a domain must not know protocol types: it imports %s", pkg, imp)
			}
		}
		return ""
	}
	irank, iname, idomain := layer(imp)
	switch {
	case iname == "api" && rank < 4 && name != "api":
		return fmt.Sprintf("%s (%s) imports %s: only servers and commands speak the control API", pkg, name, imp)
	case irank > rank:
		return fmt.Sprintf("%s (%s) imports %s (%s): imports point downward only", pkg, name, imp, iname)
	case domain != "" && idomain != "" && domain != idomain:
		return fmt.Sprintf("%s imports %s: a domain that needs another declares the interface it needs, and cmd wires them", pkg, imp)
	}
	return ""
}

func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	n := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
		for _, imp := range p.Imports {
			if msg := check(p.ImportPath, imp); msg != "" {
				t.Error(msg)
			}
		}
	}
	if n < 5 {
		t.Errorf("go list found %d packages; the check saw nothing", n)
	}
}

// The check itself must be able to fail.
func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		pkg, imp string
		bad      bool
	}{
		{"internal/base/errs", "internal/platform/cgroup", true},
		{"internal/platform/cgroup", "internal/pod", true},
		{"internal/pod", "internal/image", true},
		{"internal/pod", "internal/server/control", true},
		{"internal/pod", "api/orlop/v1", true},
		{"internal/pod", "internal/pod/ocispec", false},
		{"internal/pod", "internal/platform/keeper", false},
		{"internal/server/control", "internal/pod", false},
		{"internal/server/control", "api/orlop/v1", false},
		{"cmd/orlop", "internal/pod", false},
		{"internal/odds", "internal/base/errs", true},
	} {
		if got := check(module+tt.pkg, module+tt.imp); (got != "") != tt.bad {
			t.Errorf("%s imports %s: %q", tt.pkg, tt.imp, got)
		}
	}
	if check(module+"internal/pod", "k8s.io/api/core/v1") == "" {
		t.Error("a domain may import Kubernetes types")
	}
}
