package registry

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// write makes the files below a directory of hosts' directories and returns it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func client(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// urls are the plan in short: what is asked for, of whom.
func urls(places []place) string {
	var all []string
	for _, p := range places {
		s := "https://"
		if p.plain {
			s = "http://"
		}
		s += p.host + p.root
		if !p.pull {
			s += " -pull"
		}
		if !p.resolve {
			s += " -resolve"
		}
		if p.origin {
			s += " origin"
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

func TestPlan(t *testing.T) {
	const mirrors = `
[host."https://z.example"]
[host."http://a.example:5000/v2"]
  capabilities = ["pull", "push"]
[host."b.example/some/path"]
  override_path = true
[host."https://c.example/proxy".header]
  X = ["1", "2"]
`
	for _, tt := range []struct {
		what, name string
		files      map[string]string
		registries []config.Registry
		want       string
	}{
		{"nothing", "reg.example", nil, nil, "https://reg.example/v2 origin"},
		{"nothing, Docker Hub", "docker.io", nil, nil, "https://registry-1.docker.io/v2 origin"},
		{"mirrors in order, then the registry", "reg.example", map[string]string{"reg.example/hosts.toml": mirrors}, nil,
			"https://z.example/v2; http://a.example:5000/v2 -resolve; https://b.example/some/path; https://c.example/proxy/v2; https://reg.example/v2 origin"},
		{"an inline table", "reg.example", map[string]string{"reg.example/hosts.toml": `host = {"https://y" = {}, "https://x" = {capabilities = ["resolve"]}}`}, nil,
			"https://y/v2; https://x/v2 -pull; https://reg.example/v2 origin"},
		{"a server in the registry's stead", "reg.example", map[string]string{"_default/hosts.toml": `server = "https://cache.example"`}, nil, "https://cache.example/v2"},
		{"the server's own settings", "reg.example", map[string]string{"_default/hosts.toml": `capabilities = ["pull"]`}, nil, "https://reg.example/v2 -resolve origin"},
		{"the server of Docker Hub", "docker.io", map[string]string{"docker.io/hosts.toml": `server = "https://docker.io"`}, nil, "https://registry-1.docker.io/v2 origin"},
		{"its own before the default", "reg.example", map[string]string{"_default/hosts.toml": `server = "https://cache.example"`, "reg.example/hosts.toml": ""}, nil, "https://reg.example/v2 origin"},
		{"a port", "reg.example:5000", map[string]string{"reg.example:5000/hosts.toml": `server = "https://colon"`}, nil, "https://colon/v2"},
		{"a port, without colons", "reg.example:5000", map[string]string{"reg.example_5000_/hosts.toml": `server = "https://lines"`, "reg.example:5000/hosts.toml": `server = "https://colon"`}, nil, "https://lines/v2"},
		{"configured, with a default", "reg.example", map[string]string{"_default/hosts.toml": `server = "https://cache.example"`},
			[]config.Registry{{Host: "reg.example", Mirrors: []string{"https://m.example/x"}}}, "https://m.example/v2/x; https://reg.example/v2 origin"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c := client(t, Options{HostsDirs: []string{filepath.Join(t.TempDir(), "none"), write(t, tt.files)}, Registries: tt.registries})
			places, err := c.plan(tt.name)
			if err != nil {
				t.Fatal(err)
			}
			if got := urls(places); got != tt.want {
				t.Errorf("plan\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	c := client(t, Options{HostsDirs: []string{write(t, map[string]string{"r.example/hosts.toml": `
skip_verify = true
dial_timeout = "1500ms"
proxy = "socks5://proxy.example:1080"
[header]
  x-one = "1"
  Authorization = ["Basic x"]
`})}})
	places, err := c.plan("r.example")
	if err != nil {
		t.Fatal(err)
	}
	p := places[0]
	if !p.tls.skip || p.dialTimeout != 1500*time.Millisecond || p.proxy.Host != "proxy.example:1080" || p.header.Get("X-One") != "1" || p.header.Get("Authorization") != "Basic x" {
		t.Errorf("%+v", p)
	}
}

// What is wrong fails the pull, with file and line: nothing goes elsewhere silently.
func TestBadHosts(t *testing.T) {
	const file = "r.example/hosts.toml"
	for _, tt := range []struct {
		text string
		want []string
	}{
		{"server = \"https://a\"\nsever = \"https://b\"\n", []string{file + ":2", "unknown key sever"}},
		{"\n[host.\"https://a\"]\n  skip_verfiy = true\n", []string{file + ":3", "unknown key"}},
		{"server = ", []string{file + ":1"}},
		{"skip_verify = \"yes\"\n", []string{file + ":1"}},
		{"\nserver = \"ftp://a\"\n", []string{file + ":2: server", "ftp://a"}},
		{"[host.\"https://u:p@a\"]\n", []string{file + ":1", "without credentials"}},
		{"[host.\"https://a\"]\n\n  capabilities = [\"pul\"]\n", []string{file + `:3: host."https://a".capabilities: "pul"`}},
		{"ca = \"missing.pem\"\n", []string{file + ":1: ca", "missing.pem"}},
		{"ca = [1]\n", []string{file + ":1: ca", "no string"}},
		{"ca = \"hosts.toml\"\n", []string{file + ":1: ca", "no certificate in PEM"}},
		{"client = [[\"a\"]]\n", []string{file + ":1: client", "no pair"}},
		{"client = \"hosts.toml\"\n", []string{file + ":1: client", "no client certificate"}},
		{"[host.\"https://a\"]\ndial_timeout = \"soon\"\n", []string{file + ":2", "soon"}},
		{"proxy = \"proxy.example\"\n", []string{file + ":1: proxy"}},
		{"override_path = true\n", []string{file + ":1: override_path"}},
		{"[header]\n x = 1\n", []string{file + ":1: header"}},
		{"[header]\n x = \"a\\nb\"\n", []string{file + ":1: header"}},
	} {
		c := client(t, Options{HostsDirs: []string{write(t, map[string]string{file: tt.text})}})
		_, err := c.Repository("r.example", "a", nil)
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: the error does not say %q: %v", tt.text, w, err)
			}
		}
	}
	for what, files := range map[string]map[string]string{
		"beside it":        {"r.example/a.cert": ""},
		"client certific":  {"r.example/a.key": ""},
		"no certificate":   {"r.example/ca.crt": "x"},
		"is no directory":  {"r.example": ""},
		"keep one of them": {"both.example/hosts.toml": ""},
	} {
		c := client(t, Options{HostsDirs: []string{write(t, files)}, Registries: []config.Registry{{Host: "both.example"}}})
		name := "r.example"
		if what == "keep one of them" {
			name = "both.example"
		}
		if _, err := c.Repository(name, "a", nil); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%v: %v", files, err)
		}
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("server = \"https://a\"\n[host.\"http://b/c\"]\noverride_path = true\nca = [\"x\"]\nclient = [[\"a\", \"\"]]\n[host.\"http://b/c\".header]\nA = [\"1\"]\n")
	f.Add("host = {x = {capabilities = [\"pull\"]}}")
	dir := f.TempDir()
	c, err := New(Options{HostsDirs: []string{dir}})
	if err != nil {
		f.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "r.example"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(filepath.Join(dir, "r.example/hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := c.Repository("r.example", "app", nil)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		for _, e := range r.endpoints {
			if u := e.url("https", "blobs/x"); u.Host == "" || !strings.HasSuffix(u.Path, "/app/blobs/x") {
				t.Fatalf("%v", u)
			}
		}
	})
}
