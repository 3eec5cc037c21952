package differential

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// lookAt notes what the host sees of a container.
func lookAt(pid int, b *Bundle, out Outcome) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	read := func(name string) string {
		content, err := os.ReadFile(proc + name)
		if err != nil {
			return reason(err)
		}
		return strings.TrimSpace(string(content))
	}
	status := read("status")
	for range 100 { // Go's runtime blocks all signals while it makes a thread
		if !strings.Contains(status, "SigBlk:\tfffffffffffbfeff") {
			break
		}
		status = read("status")
	}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if slices.Contains(statusLines, key) {
			out["status "+key] = strings.Join(strings.Fields(value), " ")
		}
	}
	for _, name := range []string{"oom_score_adj", "timens_offsets", "uid_map", "gid_map", "setgroups", "coredump_filter", "attr/current", "loginuid"} {
		out["proc "+name] = strings.Join(strings.Fields(read(name)), " ")
	}
	for i, e := range strings.Split(strings.TrimSuffix(read("environ"), "\x00"), "\x00") {
		out[fmt.Sprintf("env %d", i)] = e
	}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"} {
		out["namespace "+ns] = whose(proc+"ns/"+ns, "/proc/self/ns/"+ns, b)
	}
	mountTable(read("mountinfo"), out)
	for line := range strings.Lines(read("cgroup")) {
		if _, rest, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			controllers, dir, _ := strings.Cut(rest, ":")
			out["cgroup path "+controllers] = dir
			cgroupFiles(controllers, dir, out)
		}
	}
}

var statusLines = []string{
	"Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
	"Seccomp_filters", "Speculation_Store_Bypass", "SpeculationIndirectBranch", "Cpus_allowed_list", "Mems_allowed_list", "THP_enabled", "CoreDumping",
}

// whose tells a namespace of the container's own from the host's and from those it joined.
func whose(link, host string, b *Bundle) string {
	is, err := os.Readlink(link)
	if err != nil {
		return reason(err)
	}
	if h, _ := os.Readlink(host); h == is {
		return "the host's"
	}
	for _, n := range b.Spec.Linux.Namespaces {
		if n.Path != "" {
			if j, _ := os.Readlink(n.Path); j == is {
				return "joined"
			}
		}
	}
	return "its own"
}

// mountTable notes every mount by where it is, with what it lies on; of several on one
// place the first is the lowest. Numbers of mounts, devices and peer groups tell nothing
// and are left out.
func mountTable(mountinfo string, out Outcome) {
	type mount struct{ id, parent, point, value string }
	var all []*mount
	byID := map[string]*mount{}
	sorted := func(list string) string {
		l := strings.Split(list, ",")
		slices.Sort(l)
		return strings.Join(l, ",")
	}
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line) // proc_pid_mountinfo(5)
		sep := slices.Index(f, "-")
		if sep < 6 || len(f) < sep+4 {
			continue
		}
		var peers []string
		for _, p := range f[6:sep] {
			if kind, _, _ := strings.Cut(p, ":"); kind != "propagate_from" {
				peers = append(peers, kind)
			}
		}
		m := &mount{f[0], f[1], f[4], fmt.Sprintf("%s of %s, root %s, options %s, super %s, propagation %s",
			f[sep+1], f[sep+2], f[3], sorted(f[5]), sorted(f[sep+3]), sorted(strings.Join(peers, ",")))}
		all = append(all, m)
		byID[m.id] = m
	}
	for _, m := range all {
		below, parent := 1, "nothing seen"
		for p := byID[m.parent]; p != nil && p != m; p = byID[p.parent] {
			if parent = p.point; parent != m.point {
				break
			}
			below++
		}
		key := "mount " + m.point
		if below > 1 {
			key += fmt.Sprintf(" (%d)", below)
		}
		out[key] = m.value + ", on " + parent
	}
}

// hierarchies are the host's cgroup mounts: where each controller, or named hierarchy, is.
var hierarchies = sync.OnceValue(func() map[string]string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	dirs := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		sep := slices.Index(w, "-")
		if sep < 0 || len(w) < sep+4 || w[3] != "/" {
			continue
		}
		switch w[sep+1] {
		case "cgroup2":
			dirs[""] = w[4]
		case "cgroup":
			for _, o := range strings.Split(w[sep+3], ",") {
				if o != "rw" {
					dirs[o] = w[4]
				}
			}
		}
	}
	return dirs
})

// parents are the directories of the host below which a container's group can be: the root
// of every hierarchy, for an absolute path, and this process's own group in it.
var parents = sync.OnceValue(func() (dirs []string) {
	own, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(own)) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(w) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(w[1], ",") {
			if root := hierarchies()[controller]; root != "" {
				dirs = append(dirs, root, filepath.Join(root, w[2]))
			}
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
})

// volatile marks the files of a cgroup that tell what happens rather than what was set.
var volatile = []string{"stat", "usage", "events", "procs", "tasks", "failcnt", "peak", "pressure", "current", "threads", "event_control", "force_empty", "slabinfo",
	"freezer.self", "freezer.parent", "reclaim", "io_service", "io_serviced", "cpuacct", "recursive", "blkio.time", "blkio.sectors", "io_merged", "io_queued", "io_wait", "effective", "swap.high.", "kmem.tcp.max", "cgroup.kill"}

// cgroupFiles notes the settings of a cgroup.
func cgroupFiles(controllers, dir string, out Outcome) {
	root := hierarchies()[strings.Split(controllers, ",")[0]]
	if root == "" {
		return
	}
	hybrid := hierarchies()["memory"] != ""
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		out["cgroup files "+controllers] = reason(err)
		return
	}
	for _, e := range entries {
		if hybrid && (strings.HasPrefix(e.Name(), "hugetlb.") || e.Name() == "cgroup.controllers") {
			continue // it depends on what a neighbour asked for before
		}
		if e.IsDir() || dir == "/" || slices.ContainsFunc(volatile, func(v string) bool { return strings.Contains(e.Name(), v) }) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root, dir, e.Name()))
		if err != nil {
			continue // files for writing
		}
		out["cgroup "+controllers+" "+e.Name()] = strings.Join(strings.Fields(string(content)), " ")
	}
}

// reason is an error without the path, which differs.
func reason(err error) string {
	var p *fs.PathError
	if e, ok := err.(*fs.PathError); ok {
		p = e
		return p.Err.Error()
	}
	return err.Error()
}

// leftovers notes what a container leaves behind.
func leftovers(dir, id, cgroup string, out Outcome) {
	var left []string
	entries, _ := os.ReadDir(dir + "/state")
	for _, e := range entries {
		left = append(left, "state "+strings.ReplaceAll(e.Name(), id, "$ID"))
	}
	for _, root := range parents() {
		if _, err := os.Stat(filepath.Join(root, cgroup, id)); err == nil {
			left = append(left, "cgroup")
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), dir+"/") {
		left = append(left, "mount")
	}
	slices.Sort(left)
	out["left behind"] = strings.Join(slices.Compact(left), ", ")
}

// rootfs notes what the runtime has made in the root filesystem.
func rootfs(dir string, out Outcome) {
	root := filepath.Join(dir, "rootfs")
	filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return nil
		}
		var st syscall.Stat_t
		if syscall.Lstat(p, &st) == nil {
			out["rootfs /"+strings.TrimPrefix(path.Clean(p), root+"/")] = fmt.Sprintf("%#o %d:%d", st.Mode, st.Uid, st.Gid)
		}
		return nil
	})
}
