package pod

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// ProcessUsage is what the processes of a container have, as proc(5) shows it.
type ProcessUsage struct {
	Group                           string // the control group's path
	Processes, Threads, Descriptors uint64
	Sockets                         uint64 // among the descriptors
	MaxDescriptors                  uint64 // soft limit of the first process; 0: none
	OOMKills                        uint64
}

// ContainerProcesses looks at the processes of a container that runs. Those that end
// meanwhile are left out.
func (d *Driven) ContainerProcesses(id ContainerID) (ProcessUsage, error) {
	c, st, err := d.running(id)
	if err != nil {
		return ProcessUsage{}, err
	}
	u := ProcessUsage{Group: c.pod.w.group() + "/" + string(id)}
	g, err := d.p.cgroups.Load(u.Group)
	if err != nil {
		return u, err
	}
	if err := u.add(g); err != nil {
		return u, err
	}
	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", st.PID)); err == nil {
		u.MaxDescriptors = openFilesLimit(limits)
	}
	return u, nil
}

// SandboxGroup is the path of the pod's control group.
func (d *Driven) SandboxGroup(id ID) string {
	pod, err := d.pod(id)
	if err != nil {
		return ""
	}
	return pod.w.group()
}

func (u *ProcessUsage) add(g *cgroup.Group) error {
	pids, err := g.Procs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		tasks, err := os.ReadDir(dir + "/task")
		if err != nil {
			continue
		}
		u.Processes++
		u.Threads += uint64(len(tasks))
		open, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue
		}
		u.Descriptors += uint64(len(open))
		for _, f := range open {
			if to, err := os.Readlink(dir + "/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				u.Sockets++
			}
		}
	}
	if u.OOMKills, err = g.OOMKills(); err != nil && errs.KindOf(err) != errs.NotFound {
		return err
	}
	return nil
}

// openFilesLimit reads /proc/PID/limits.
func openFilesLimit(text []byte) uint64 {
	const name = "Max open files"
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(string(f[0]), 10, 64)
				return n
			}
		}
	}
	return 0
}
