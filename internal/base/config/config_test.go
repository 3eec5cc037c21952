package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, yaml string
		want       []string // parts of the error; none: no error
	}{
		{"empty", "", nil},
		{"one setting", "log:\n  level: debug\n", nil},
		{"unknown key", "log:\n  level: info\nnetwerk: {}\n", []string{"line 3", `unknown key "netwerk"`, "orlop config show"}},
		{"unknown nested key", "log:\n  levle: info\n", []string{"line 2", `unknown key "levle" under "log"`}},
		{"wrong type", "image:\n  parallel: many\n", []string{"line 2", "many"}},
		{"duplicate key", "root: /a\nroot: /b\n", []string{"line 2", "already defined at line 1"}},
		{"not YAML", "root: [", []string{"line 1"}},
		{"two documents", "root: /a\n---\nroot: /b\n", []string{"more than one"}},
		{"several at once", "instance: Orlop!\nroot: rel\nlog: {level: loud}\nnetwork: {ipv4Block: 10.0.0.1/16}\n",
			[]string{"instance", "root", "log.level", "did you mean 10.0.0.0/16?"}},
		{"other family", "network: {ipv6Block: 10.0.0.0/16}", []string{"other address family"}},
		{"no addresses", "network: {ipv4Block: '', ipv6Block: ''}", []string{"pods need an address"}},
		{"root cgroup", "cgroup: {parent: /}", []string{"cgroup.parent"}},
		{"climbing cgroup", "cgroup: {parent: /a/../..}", []string{"cgroup.parent"}},
		{"user namespaces over the host's ids", "pod: {userNamespaces: {firstID: 1000}}", []string{"pod.userNamespaces.firstID", "65536 at least"}},
		{"more user namespaces than ids", "pod: {userNamespaces: {pods: 70000}}", []string{"pod.userNamespaces.pods"}},
		{"no user namespaces", "pod: {userNamespaces: {pods: 0}}", nil},
		{"metrics", "metrics: {listen: 9464}", []string{"metrics.listen"}},
		{"tracing", "tracing: {endpoint: 'http://127.0.0.1:4318', samplingRatio: 0.1}", nil},
		{"tracing without a scheme", "tracing: {endpoint: 'localhost:4317', samplingRatio: 1.5, caFile: ca.pem}", []string{"tracing.endpoint", "http://127.0.0.1:4318", "tracing.samplingRatio", "tracing.caFile"}},
		{"runtimes", "cri: {runtimes: {runc: {path: /usr/sbin/runc}, gvisor: {path: /usr/bin/runsc, args: [--platform=systrap], timeout: 1m}}}", nil},
		{"bad runtimes", "cri: {runtimes: {default: {path: runc}, Up: {path: /x, timeout: 1ms}, a: {path: /a, root: /r}, b: {path: /b, root: /r}}}",
			[]string{"own executor", "cri.runtimes.default.path", `"Up" must be`, "cri.runtimes.Up.timeout", "/r is that of a too"}},
		{"unknown key of a runtime", "cri: {runtimes: {runc: {path: /usr/sbin/runc, type: oci}}}", []string{`unknown key "type" under "runtime"`}},
		{"policy", "image: {policy: {default: maybe, rules: [{prefix: busybox, action: accept}, {prefix: 'a.b/c:1', action: signedBy}, {prefix: 'https://a.b', action: reject, keys: [x]}]}}",
			[]string{`image.policy.default: "maybe"`, `rules[0].prefix: "busybox"`, `rules[1].prefix: "a.b/c:1"`, "rules[1].keys: signedBy needs", `rules[2].prefix: "https://a.b"`, "rules[2]: keys and signedAs belong"}},
		{"a good policy", "image: {policy: {default: reject, rules: [{prefix: 'localhost', action: accept}, {prefix: 'a.b:5000/c', action: signedBy, keys: [k], signedAs: '*'}]}}", nil},
		{"collection", "image: {gc: {highPercent: 50, lowPercent: 60, interval: 1ms}}", []string{"image.gc: lowPercent", "image.gc.interval"}},
		{"hosts", "image: {hostsDirs: [certs.d]}", []string{`image.hostsDirs: "certs.d"`}},
		{"metrics off", "metrics: {listen: 'off'}", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("c.yaml", []byte(tt.yaml))
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, errs.Invalid) {
				t.Fatalf("error %v is not of kind Invalid", err)
			}
			for _, w := range append(tt.want, "c.yaml") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not say %q:\n%v", w, err)
				}
			}
		})
	}
}

// What `config show` prints must be read back as the same configuration.
func TestRoundTrip(t *testing.T) {
	c, err := Parse("c.yaml", []byte("instance: other\ncri: {runtimes: {runc: {path: /usr/sbin/runc}}}\nimage: {registries: [{host: localhost:5000, mirrors: ['http://127.0.0.1:5000']}]}"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse("d.yaml", out)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := d.YAML()
	if string(again) != string(out) {
		t.Errorf("read back:\n%s\nwas:\n%s", again, out)
	}
	if r := d.CRI.Runtimes["runc"]; r.Root != "/run/orlop/runtimes/runc" || r.Timeout != 30*time.Second {
		t.Errorf("derived settings of a runtime: %+v", r)
	}
	if d.Cgroup.Parent != "/other" || d.Control.Socket != "/run/orlop/orlop.sock" {
		t.Errorf("derived settings: %q %q", d.Cgroup.Parent, d.Control.Socket)
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "missing.yaml")); !errors.Is(err, errs.Invalid) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a named file that is missing: %v", err)
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	os.WriteFile(path, []byte("root: /srv/orlop\n"), 0o600)
	c, err := Load(path)
	if err != nil || c.Root != "/srv/orlop" || c.Run != "/run/orlop" {
		t.Errorf("Load: %+v, %v", c, err)
	}
}
