// Command orlop-keeper is the parent of every container of the node
// (docs/design/keeper.md). The daemon starts it; it lives as long as any container.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/keeper/server"
)

// version is set by the build.
var version = "dev"

func main() {
	var o server.Options
	flag.StringVar(&o.Dir, "dir", "/run/orlop/keeper", "directory of socket and containers, on tmpfs")
	flag.StringVar(&o.Init, "init", "/usr/libexec/orlop/orlop-init", "the orlop-init binary")
	flag.StringVar(&o.Roots, "roots", "", "directory for root filesystems of containers in user namespaces that another runtime makes; others must be able to search what leads there (empty: none)")
	driver := flag.String("cgroup-driver", "", "cgroupfs or systemd; empty finds out")
	faults := flag.Bool("faults", false, "list the fault points of this build and end")
	about := flag.Bool("about", false, "print version, protocol and state's format and end")
	flag.Parse()
	if *about {
		fmt.Println(server.About(version))
		return
	}
	if *faults {
		for _, name := range fault.List() {
			fmt.Println(name)
		}
		return
	}
	o.Driver, o.Build = cgroup.Driver(*driver), version
	o.Log = slog.New(trace.Handler(slog.NewTextHandler(os.Stderr, nil)))
	// A keeper idles: memory that a burst took goes back soon.
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(32 << 20)
	// Signals are caught, not ignored: what is ignored stays so in every container.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	s, err := server.Open(o)
	if err == nil {
		go func() {
			for sig := range signals {
				if sig != syscall.SIGTERM {
					continue
				}
				// One that has containers stays: they would lose their parent.
				if err := s.Shutdown(); err != nil {
					o.Log.Warn("the keeper stays", "signal", sig, "error", err)
				}
			}
		}()
		err = s.Serve()
	}
	if err != nil {
		o.Log.Error("the keeper ends", "error", err)
		os.Exit(1)
	}
}
