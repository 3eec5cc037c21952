package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/test/proc"
	"github.com/orlop-io/orlop/test/programs"
)

// census counts what a node has of whatever could leak.
type census struct {
	DaemonKiB, KeeperKiB          int // proportional set size
	DaemonHeapKiB, DaemonFileKiB  int // of it: anonymous, and of files
	DaemonFDs, KeeperFDs          int
	DaemonThreads, KeeperThreads  int
	Goroutines                    int
	Mounts, Groups, Links, Routes int
	Namespaces                    int // network namespaces of pods that are pinned
	Endpoints                     int // pods with an address
	StateKiB, StateFiles          int // of the volatile state, and files beside it
	DurableKiB                    int
}

// count takes stock of the node.
func (n *node) count(t *testing.T) (c census) {
	t.Helper()
	daemon, keeper := n.daemonPID(), n.keeperPID()
	c.DaemonKiB, c.KeeperKiB = proc.KiB(t, daemon, "smaps_rollup", "Pss"), proc.KiB(t, keeper, "smaps_rollup", "Pss")
	c.DaemonHeapKiB = proc.KiB(t, daemon, "smaps_rollup", "Pss_Anon")
	c.DaemonFileKiB = c.DaemonKiB - c.DaemonHeapKiB
	c.DaemonFDs, c.KeeperFDs = countDir(t, fmt.Sprintf("/proc/%d/fd", daemon)), countDir(t, fmt.Sprintf("/proc/%d/fd", keeper))
	c.DaemonThreads, c.KeeperThreads = countDir(t, fmt.Sprintf("/proc/%d/task", daemon)), countDir(t, fmt.Sprintf("/proc/%d/task", keeper))
	metrics := n.metrics(t)
	c.Goroutines, c.Endpoints = metrics["go_goroutines"], metrics["orlop_network_endpoints"]
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, n.root+"/") || strings.Contains(line, n.run+"/") {
			c.Mounts++
		}
		if strings.Contains(line, n.run+"/pods/") && strings.Contains(line, "/ns/net ") {
			c.Namespaces++
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/"+n.name+"/") {
			c.Groups++
		}
		return nil
	})
	c.Links = strings.Count(run(t, "ip", "-n", n.name, "-o", "link"), "orl")
	c.Routes = strings.Count(run(t, "ip", "-n", n.name, "route", "show", "table", "all"), "10.115.")
	c.StateKiB, c.DurableKiB = fileKiB(t, n.run+"/state.db"), fileKiB(t, n.root+"/state.db")
	filepath.WalkDir(n.run, func(_ string, _ fs.DirEntry, err error) error {
		if err == nil {
			c.StateFiles++
		}
		return nil
	})
	return c
}

// settle waits until daemon and keeper have given back what a burst took, and counts. With the
// race detector nobody looks at memory: then it is until the rest stays as it is.
func (n *node) settle(t *testing.T) census {
	t.Helper()
	last, since := n.count(t), time.Now()
	for time.Since(since) < settleTime {
		time.Sleep(time.Second)
		c := n.count(t)
		switch {
		case !programs.Race && c.DaemonKiB+c.KeeperKiB < last.DaemonKiB+last.KeeperKiB-64:
			last, since = c, time.Now()
		case programs.Race && c.withoutSizes() == last.withoutSizes():
			return c
		case programs.Race:
			last = c
		}
	}
	return n.count(t)
}

func (c census) withoutSizes() census {
	c.DaemonKiB, c.KeeperKiB, c.DaemonHeapKiB, c.DaemonFileKiB, c.StateKiB, c.DurableKiB = 0, 0, 0, 0, 0, 0
	return c
}

// settleTime is longer than the daemon and the keeper take to see that they are idle.
const settleTime = 8 * time.Second

// leaks names what is more than it was, but for memory.
func (c census) leaks(before census) (list []string) {
	for _, v := range []struct {
		what        string
		now, before int
		slack       int // what Go's runtime and a client's connection may take meanwhile
	}{
		{"descriptors of the daemon", c.DaemonFDs, before.DaemonFDs, 4},
		{"descriptors of the keeper", c.KeeperFDs, before.KeeperFDs, 2},
		{"threads of the daemon", c.DaemonThreads, before.DaemonThreads, 24},
		{"threads of the keeper", c.KeeperThreads, before.KeeperThreads, 16},
		{"goroutines", c.Goroutines, before.Goroutines, 8},
		{"mounts", c.Mounts, before.Mounts, 0},
		{"control groups", c.Groups, before.Groups, 0},
		{"interfaces", c.Links, before.Links, 0},
		{"routes", c.Routes, before.Routes, 0},
		{"network namespaces", c.Namespaces, before.Namespaces, 0},
		{"endpoints", c.Endpoints, before.Endpoints, 0},
		{"files of the volatile state", c.StateFiles, before.StateFiles, 1},
	} {
		if v.now > v.before+v.slack {
			list = append(list, fmt.Sprintf("%s: %d, before %d", v.what, v.now, v.before))
		}
	}
	return list
}

func (c census) String() string {
	raw, _ := json.Marshal(c)
	return string(raw)
}

// daemonPID is the daemon itself: n.daemon is nsenter, which becomes it.
func (n *node) daemonPID() int { return n.daemon.Process.Pid }

// metrics are the daemon's, but for those with labels.
func (n *node) metrics(t *testing.T) map[string]int {
	t.Helper()
	text, err := n.http("GET", "http://127.0.0.1:9464/metrics", "")
	if err != nil {
		t.Fatalf("metrics: %v\n%s", err, n.tail())
	}
	all := make(map[string]int)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && line[0] != '#' {
			if v, err := strconv.ParseFloat(f[1], 64); err == nil {
				all[f[0]] = int(v)
			}
		}
	}
	return all
}

func countDir(t *testing.T, dir string) int {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

func fileKiB(t *testing.T, path string) int {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(fi.Size() >> 10)
}

// number is a size of a test, which a variable of the environment can make larger.
func number(t *testing.T, variable string, small int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return small
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a number above 0", variable, text)
	}
	return n
}
