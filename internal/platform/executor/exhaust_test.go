package executor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// TestExhaustion: a specification or an image that asks for too much gets an error that
// says so, of the right kind, in bounded time, and nothing is left.
func TestExhaustion(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(s *specs.Spec, c *Config)
		kind   *errs.Kind // nil: it starts
		text   string
	}{
		"environment larger than a plan may be": {func(s *specs.Spec, c *Config) {
			for i := range 70 {
				s.Process.Env = append(s.Process.Env, fmt.Sprintf("A%d=%s", i, strings.Repeat("x", 1<<20)))
			}
		}, errs.Invalid, "too large"},
		"environment larger than the kernel takes": {func(s *specs.Spec, c *Config) {
			s.Process.Env = append(s.Process.Env, "A="+strings.Repeat("x", 200<<10))
		}, errs.Invalid, "too long"},
		"more arguments than the kernel takes": {func(s *specs.Spec, c *Config) {
			s.Process.Args = append(s.Process.Args, slices.Repeat([]string{"argument"}, 1<<20)...)
		}, errs.Invalid, "too long"},
		"start that takes more memory than its group has": {func(s *specs.Spec, c *Config) {
			c.Cgroup = group(t) // 64 MiB
			for i := range 60 {
				s.Process.Env = append(s.Process.Env, fmt.Sprintf("A%d=%s", i, strings.Repeat("x", 1<<20)))
			}
		}, errs.Internal, "limits"},
		"PATH longer than a message": {func(s *specs.Spec, c *Config) {
			s.Process.Args = []string{"nothing"}
			s.Process.Env = []string{"PATH=/" + strings.Repeat("x/:/", 1<<18)}
		}, errs.NotFound, "not in PATH"},
		"path longer than paths are": {func(s *specs.Spec, c *Config) {
			s.Process.Cwd = "/" + strings.Repeat("x/", 1<<18)
		}, errs.Invalid, "working directory"},
		"a thousand mounts": {func(s *specs.Spec, c *Config) {
			for i := range 1000 {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: fmt.Sprintf("/tmp/%d", i), Type: "tmpfs", Source: "tmpfs"})
			}
		}, nil, ""},
		"one mount on another": {func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, slices.Repeat([]specs.Mount{{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"}}, 1000)...)
		}, nil, ""},
		"thousands of masked paths": {func(s *specs.Spec, c *Config) {
			for i := range 10000 {
				s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, fmt.Sprintf("/proc/none/%d", i))
			}
		}, nil, ""},
		"mount point deeper than paths are": {func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: strings.Repeat("/x", 3000), Type: "tmpfs", Source: "tmpfs"})
		}, errs.Invalid, "long"},
		"more groups than there may be": {func(s *specs.Spec, c *Config) {
			s.Process.User.AdditionalGids = make([]uint32, 1<<17)
		}, errs.Invalid, "dditional"},
		"links of an image through links": {func(s *specs.Spec, c *Config) {
			lower := c.Rootfs.Lower[0]
			os.Symlink("tmp/missing", lower+"/l0")
			for i := range 50 {
				os.Symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("%s/l%d", lower, i+1))
			}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/l50/x", Type: "tmpfs", Source: "tmpfs"})
		}, errs.Invalid, "/l50/x"},
	} {
		t.Run(name, func(t *testing.T) {
			before := leftovers()
			s := spec("true")
			c := Config{ID: "greedy", Spec: s, Rootfs: layers(t, image(t))}
			tt.change(s, &c)
			p, err := shared.Create(contextT(t), c)
			if err == nil {
				if err = p.Start(contextT(t)); err == nil {
					wait(t, p)
				}
				p.Close()
			}
			switch {
			case tt.kind == nil && err != nil:
				t.Errorf("it does not start: %v", err)
			case tt.kind != nil && (!errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text)):
				t.Errorf("got %.500v (kind %v), want kind %v and %q", err, errs.KindOf(err), tt.kind, tt.text)
			case err != nil && len(err.Error()) > 16<<10:
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}
