// Command bench measures Orlop beside what the distribution packages (containerd
// with runc, podman), in interleaved rounds of one run, and writes the table of
// docs/benchmarks.md. It runs as root, keeps everything in directories, groups and
// an instance of its own, and removes them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

type options struct {
	out    string
	only   string
	dir    string
	rounds int
	starts int // containers per round
	pods   int // pods per round
	idle   int // pods left idle
	pulls  bool
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", "", "file to write the table to; standard output where empty")
	flag.StringVar(&o.only, "only", "", "comma-separated names of what to measure (orlop, containerd, podman, runc)")
	flag.StringVar(&o.dir, "dir", "/var/tmp/orlop-bench", "directory for everything that is made")
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	flag.IntVar(&o.starts, "starts", 20, "containers per round")
	flag.IntVar(&o.pods, "pods", 10, "pods per round")
	flag.IntVar(&o.idle, "idle", 40, "idle pods for rate and memory")
	flag.BoolVar(&o.pulls, "pulls", true, "measure pulls")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("run as root (make bench)")
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	idle := filepath.Join(o.dir, "idle")
	if err := buildStatic(idle, "./bench/idle"); err != nil {
		return err
	}
	root := filepath.Join(o.dir, "busybox")
	if err := makeRoot(root); err != nil {
		return err
	}
	say("making the images")
	host, stop, err := serveImages(o.dir+"/images", idle, o.pulls)
	if err != nil {
		return err
	}
	defer stop()

	wanted := func(name string) bool { return o.only == "" || strings.Contains(","+o.only+",", ","+name+",") }
	var starters []starter
	var peers []peer
	if wanted("orlop") {
		starters = append(starters, &orlopStarter{dir: o.dir + "/start", root: root})
		peers = append(peers, &orlop{dir: o.dir + "/orlop", registry: host})
	}
	if wanted("runc") {
		starters = append(starters, &runc{dir: o.dir + "/runc", root: root})
	}
	if wanted("containerd") {
		peers = append(peers, &containerd{dir: o.dir + "/containerd", registry: host})
	}
	if wanted("podman") {
		peers = append(peers, &podman{dir: o.dir + "/podman", registry: host})
	}

	starts := map[string]*startResult{}
	for _, s := range starters {
		defer s.Stop()
		if err := s.Start(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
		starts[s.Name()] = &startResult{}
	}
	pods := map[string]*podResult{}
	for _, p := range peers {
		defer p.Stop()
		if err := p.Start(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.Name(), err)
		}
		pods[p.Name()] = &podResult{}
	}
	for round := range o.rounds {
		for _, s := range starters {
			say("round %d: containers of %s", round+1, s.Name())
			if err := starts[s.Name()].measure(ctx, s, round, o.starts); err != nil {
				return err
			}
		}
		for _, p := range peers {
			say("round %d: pods of %s", round+1, p.Name())
			if err := pods[p.Name()].measureStarts(ctx, p, round, o.pods); err != nil {
				return err
			}
			if !o.pulls {
				continue
			}
			say("round %d: pull by %s", round+1, p.Name())
			if err := pods[p.Name()].measurePull(ctx, p, host+"/bench/big:1"); err != nil {
				return err
			}
		}
	}
	for _, p := range peers {
		say("%d pods of %s, 8 at once", o.idle, p.Name())
		if err := pods[p.Name()].measureIdle(ctx, p, o.idle); err != nil {
			return err
		}
	}
	out := os.Stdout
	if o.out != "" {
		if out, err = os.Create(o.out); err != nil {
			return err
		}
		defer out.Close()
	}
	report(out, o, starters, starts, peers, pods)
	return nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
