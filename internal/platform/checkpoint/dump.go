package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/criu"
)

// Options say how a container is saved.
type Options struct {
	Images
	// Parent is a directory with an earlier PreDump, relative to Dir: only memory that was
	// written to since is saved.
	Parent string
	// LeaveRunning lets the container go on.
	LeaveRunning bool
	// PreDump saves memory alone, and lets the container go on.
	PreDump         bool
	TCPSkipInFlight bool
	LinkRemap       bool
	// PageServer and PagePort are where memory is sent, instead of to files.
	PageServer string
	PagePort   int
	// Status is written a zero byte once pages can be asked for (LazyPages).
	Status *os.File
	// Still, where it is set, is called when all is saved and the processes still stand still: what
	// belongs to it can be looked at as it was. If it fails, the checkpoint has.
	Still func() error
}

// Container is one that is saved.
type Container struct {
	PID  int
	Spec *specs.Spec
	// Group is its control group, nil without one.
	Group *cgroup.Group
}

// Dump saves a container, which the caller has looked at with Savable. On error it runs as before.
//
// Signals do not end it half way: the processes would be left as CRIU has them. When ctx ends, CRIU is
// told at its next stage, and lets them go on.
func (c *Container) Dump(ctx context.Context, tool *criu.CRIU, o Options) error {
	dump, err := c.dumpOptions(ctx, tool, &o)
	if err != nil {
		return err
	}
	defer dump.Images.Close()
	if dump.Work != nil {
		defer dump.Work.Close()
	}
	req := &criu.Request{Type: criu.Dump, Options: dump, Notify: func(n *criu.Notification) error {
		switch {
		case n.Script == "status-ready" && o.Status != nil:
			_, err := o.Status.Write([]byte{0})
			return errors.Join(err, o.Status.Close())
		case n.Script == "post-dump" && !o.PreDump: // the container can still go on
			if o.Still != nil {
				if err := o.Still(); err != nil {
					return err
				}
			}
			if !o.LeaveRunning {
				return writeManifest(o.Dir, o.Cgroups)
			}
		}
		return nil
	}}
	if o.PreDump {
		req.Type = criu.PreDump
	} else if err := c.dumpOutside(dump); err != nil {
		return err
	}
	if err := tool.Do(ctx, req); err != nil {
		return o.Explain(err, dump.LogFile)
	}
	if o.LeaveRunning || o.PreDump {
		return writeManifest(o.Dir, o.Cgroups)
	}
	return nil
}

// dumpOptions are those of a request to save the container.
func (c *Container) dumpOptions(ctx context.Context, tool *criu.CRIU, o *Options) (_ *criu.Options, err error) {
	want := criu.Features{MemoryTracking: o.PreDump || o.Parent != "", LazyPages: o.LazyPages}
	if want != (criu.Features{}) {
		have, err := tool.Features(ctx, want)
		if err != nil {
			return nil, err
		}
		if want.MemoryTracking && !have.MemoryTracking {
			return nil, errs.New(errs.Unsupported, "this kernel does not tell which memory was written to (CONFIG_MEM_SOFT_DIRTY), so there is no pre-dump and no parent")
		}
		if want.LazyPages && !have.LazyPages {
			return nil, errs.New(errs.Unsupported, "this kernel cannot fetch pages lazily (userfaultfd)")
		}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the images: %w", err)
	}
	// That of an earlier checkpoint says nothing of this one.
	if err := os.Remove(filepath.Join(o.Dir, manifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if o.Parent != "" {
		if filepath.IsAbs(o.Parent) {
			return nil, errs.New(errs.Invalid, "--parent-path %s: it must be relative, to the directory of the images", o.Parent)
		}
		if st, err := os.Stat(filepath.Join(o.Dir, o.Parent)); err != nil {
			return nil, errs.New(errs.NotFound, "invalid --parent-path: %w", err)
		} else if !st.IsDir() {
			return nil, errs.New(errs.Invalid, "invalid --parent-path: %s is not a directory", o.Parent)
		}
	}
	g := c.Group
	if err := c.strangers(g); err != nil {
		return nil, err
	}
	if o.Cgroups == "" {
		// CRIU looks at groups by mounting their filesystem again, which on cgroup v2 takes options
		// away from the host's own (nsdelegate, memory_recursiveprot): only where it has to.
		o.Cgroups = "ignore"
		if g != nil && hasGroupsBelow(g) {
			o.Cgroups = "soft"
		}
	}
	d, err := o.Images.Options("dump.log")
	if err == nil {
		err = o.OpenDirs(d)
	}
	if err != nil {
		return nil, err
	}
	d.PID, d.LeaveRunning = c.PID, o.LeaveRunning
	d.ParentImages, d.TrackMemory = o.Parent, want.MemoryTracking
	d.TCPSkipInFlight, d.LinkRemap = o.TCPSkipInFlight, o.LinkRemap
	d.PageServer, d.PagePort = o.PageServer, o.PagePort
	if g != nil {
		dirs := g.Dirs()
		if d.FreezeCgroup = dirs["freezer"]; d.FreezeCgroup == "" && len(dirs) == 1 {
			d.FreezeCgroup = dirs[""]
		}
	}
	return d, nil
}

// hasGroupsBelow tells whether processes of the group are in groups of its own making.
func hasGroupsBelow(g *cgroup.Group) bool {
	all, err := g.Procs()
	if err != nil {
		return false
	}
	for _, dir := range g.Dirs() {
		data, err := os.ReadFile(dir + "/cgroup.procs")
		if err == nil && len(strings.Fields(string(data))) < len(all) {
			return true
		}
	}
	return false
}

// strangers refuses processes that are in the container's group but do not descend from its
// first: those of exec. CRIU saves a tree.
func (c *Container) strangers(g *cgroup.Group) error {
	if g == nil {
		return nil
	}
	procs, err := g.Procs()
	if err != nil {
		return err
	}
	parents := map[int]int{}
	for _, pid := range procs {
		parents[pid] = parentOf(pid)
	}
	var others []string
	for _, pid := range procs {
		p := pid
		for p != c.PID && parents[p] != 0 {
			p = parents[p]
		}
		if p != c.PID && parents[pid] != 0 { // and has not ended
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			others = append(others, fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(name))))
		}
	}
	if len(others) > 0 {
		return errs.New(errs.FailedPrecondition, "only what descends from the container's first process can be saved; end what was started by exec first: %s", strings.Join(others, ", "))
	}
	return nil
}

// parentOf returns the process's parent, 0 if it is gone.
func parentOf(pid int) int {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}

// dumpOutside adds what CRIU has to leave out.
func (c *Container) dumpOutside(d *criu.Options) error {
	spec := c.Spec
	table, err := openMountTable(c.PID)
	if err != nil {
		return err
	}
	defer table.close()
	if d.Mounts, err = table.external(spec); err != nil {
		return err
	}
	for _, n := range ExternalNamespaces {
		p, err := Joined(spec, n.Kind, n.File)
		if err != nil {
			return err
		}
		if p != "" {
			var st unix.Stat_t
			if err := unix.Stat(p, &st); err != nil {
				return fmt.Errorf("%s namespace %s: %w", n.Kind, p, err)
			}
			d.External = append(d.External, fmt.Sprintf("%s[%d]:%s", n.File, st.Ino, n.Name))
		}
	}
	var streams [3]string
	for fd := range streams {
		if streams[fd], err = stream(c.PID, fd, table); err != nil {
			return err
		}
		if strings.HasPrefix(streams[fd], "file[") && !slices.Contains(d.External, streams[fd]) {
			d.External = append(d.External, streams[fd])
		}
	}
	data, err := json.Marshal(streams)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.Images.Name(), descriptors), data, 0o600); err != nil {
		return fmt.Errorf("write down the standard streams: %w", err)
	}
	return nil
}
