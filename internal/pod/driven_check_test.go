package pod

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestDrivenCheck(t *testing.T) {
	long, deep := strings.Repeat("n", maxName+1), strings.Repeat("/d", 2048)
	sandbox := func(change func(*SandboxConfig)) error {
		c := SandboxConfig{UID: "1f2e"}
		c.Name, c.Namespace, c.LogDir = "web-0", "default", "/var/log/pods/default_web-0_1f2e"
		change(&c)
		return c.check()
	}
	container := func(change func(*ContainerConfig)) error {
		c := ContainerConfig{LogPath: "web/0.log"}
		c.Name = "web"
		change(&c)
		return c.check()
	}
	for name, tt := range map[string]struct {
		err  error
		want string // "": it is right
	}{
		"sandbox":             {sandbox(func(*SandboxConfig) {}), ""},
		"longest name":        {sandbox(func(c *SandboxConfig) { c.Name = long[1:] }), ""},
		"no name":             {sandbox(func(c *SandboxConfig) { c.Name = "" }), "no pod's name"},
		"no namespace":        {sandbox(func(c *SandboxConfig) { c.Namespace = "" }), "no pod's namespace"},
		"no uid":              {sandbox(func(c *SandboxConfig) { c.UID = "" }), "no pod's uid"},
		"long name":           {sandbox(func(c *SandboxConfig) { c.Name = long }), "254 bytes"},
		"path for a name":     {sandbox(func(c *SandboxConfig) { c.Name = "a/b" }), "not possible"},
		"two lines":           {sandbox(func(c *SandboxConfig) { c.UID = "a\nb" }), "not possible"},
		"not UTF-8":           {sandbox(func(c *SandboxConfig) { c.Name = "a\xff" }), "not possible"},
		"relative logs":       {sandbox(func(c *SandboxConfig) { c.LogDir = "var/log" }), "not an absolute path"},
		"deep logs":           {sandbox(func(c *SandboxConfig) { c.LogDir = deep }), "log directory has 4096 bytes"},
		"long part":           {sandbox(func(c *SandboxConfig) { c.CgroupParent = "/" + strings.Repeat("g", 256) }), "a part of 256 bytes"},
		"labels":              {sandbox(func(c *SandboxConfig) { c.Labels = map[string]string{"a": strings.Repeat("l", maxLabels)} }), "labels and annotations"},
		"container":           {container(func(*ContainerConfig) {}), ""},
		"no container's name": {container(func(c *ContainerConfig) { c.Name = "" }), "no container's name"},
		"zero byte":           {container(func(c *ContainerConfig) { c.WorkingDir = "/a\x00b" }), "zero byte"},
		"deep mount":          {container(func(c *ContainerConfig) { c.Binds = []Bind{{HostPath: "/a", ContainerPath: deep}} }), "mount's path"},
		"variable":            {container(func(c *ContainerConfig) { c.Variables = []string{"A=\xff"} }), "not UTF-8"},
		"UTF-8":               {container(func(c *ContainerConfig) { c.Variables = []string{"A=ä\x01"} }), ""},
	} {
		if tt.want == "" && tt.err != nil || tt.want != "" && (!errors.Is(tt.err, errs.Invalid) || !strings.Contains(tt.err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, tt.err, tt.want)
		}
	}
}

func TestMakeLogDir(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	logs := filepath.Join(top, "logs")
	if err := makeLogDir(logs, filepath.Join(logs, "a/b/0.log")); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(logs, "a/b")); err != nil || !fi.IsDir() {
		t.Errorf("%v %v", fi, err)
	}
	// A link that stays inside is somebody's way of ordering things.
	for from, to := range map[string]string{"inside": "a", "out": outside, "up": "../outside"} {
		if err := os.Symlink(to, filepath.Join(logs, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeLogDir(logs, filepath.Join(logs, "inside/0.log")); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"out/0.log", "up/new/0.log", "out", "a"} {
		if err := makeLogDir(logs, filepath.Join(logs, path)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("made outside: %v %v", left, err)
	}
}
