package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/heap"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/server/control"
	"github.com/orlop-io/orlop/internal/server/cri"
	"github.com/orlop-io/orlop/internal/server/nri"
	"github.com/orlop-io/orlop/internal/server/web"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// newDaemonCommand returns `orlop daemon`.
func newDaemonCommand() *cobra.Command {
	var path string
	var faults bool
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon in the foreground",
		Long: `Runs the daemon until SIGTERM or SIGINT. Containers outlive it: a daemon that starts again, after a stop, a
crash or kill -9, finds them and goes on. Logs go to standard error.`,
		Example: `  orlop daemon
  orlop daemon --config /etc/orlop/config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if faults {
				for _, name := range fault.List() {
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
				return nil
			}
			if os.Geteuid() != 0 {
				return errs.New(errs.PermissionDenied, "the daemon makes namespaces, mounts and control groups; run it as root")
			}
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			return runDaemon(ctx, c, newLogger(c.Log, os.Stderr))
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (default "+config.DefaultPath+" if it exists)")
	cmd.Flags().BoolVar(&faults, "faults", false, "list the fault points of this build and end")
	cmd.Flags().MarkHidden("faults")
	return cmd
}

// newLogger returns the daemon's log as configured.
func newLogger(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(c.Level)) // validated by config
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(trace.Handler(slog.NewJSONHandler(w, o)))
	}
	return slog.New(trace.Handler(slog.NewTextHandler(w, o)))
}

// runDaemon opens every domain, reconciles, and serves until ctx ends.
func runDaemon(ctx context.Context, c config.Config, log *slog.Logger) error {
	log.Info("starting", "version", version, "instance", c.Instance, "root", c.Root, "run", c.Run)
	begin := time.Now()
	h, err := openHost(ctx, c, log)
	if err != nil {
		return err
	}
	defer h.Close()
	defer h.openTracing()()
	if err := os.WriteFile(pidFile(c), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
		return err
	}
	defer os.Remove(pidFile(c))

	// The sockets answer from here on; /readyz says no until stock has been taken.
	ready := make(chan struct{})
	webHandler := web.New(web.Options{Version: version, Sources: h.sources(), Collectors: []prometheus.Collector{h.watch}, Ready: func(context.Context) error {
		select {
		case <-ready:
			return nil
		default:
			return errs.New(errs.Unavailable, "the daemon is taking stock of what runs")
		}
	}})
	socket, err := listenUnix(c.Control.Socket, c.Control.Group)
	if err != nil {
		return err
	}
	servers := []*http.Server{control.NewServer(control.New(h.controlOptions(ready, webHandler)))}
	listeners := []net.Listener{socket}
	if c.Metrics.Listen != "off" {
		l, err := net.Listen("tcp", c.Metrics.Listen)
		if err != nil {
			// Containers matter more than their metrics, which the control socket serves too.
			log.Error("metrics are served on the control socket only", "address", c.Metrics.Listen, "error", err)
		} else {
			servers = append(servers, &http.Server{Handler: webHandler, ReadHeaderTimeout: 10 * time.Second})
			listeners = append(listeners, l)
		}
	}

	var runtime *cri.Server
	var criSocket net.Listener
	var plugins *nri.Server
	if c.CRI.Socket != "off" {
		o, err := h.criOptions(ready)
		if err != nil {
			return err
		}
		if runtime, err = cri.New(o); err != nil {
			return err
		}
		if c.CRI.NRI.Socket != "off" {
			plugins, err = nri.New(nri.Options{Pods: o.Pods, Version: version, Socket: c.CRI.NRI.Socket, Timeout: c.CRI.NRI.Timeout, Log: log.With("server", "nri")})
			if err != nil {
				return err
			}
			o.Pods.SetHooks(plugins)
		}
		if criSocket, err = listenUnix(c.CRI.Socket, ""); err != nil {
			return err
		}
	}

	g, ctx := errgroup.WithContext(ctx)
	if runtime != nil {
		g.Go(func() error { return runtime.Serve(criSocket) })
	}
	for i, s := range servers {
		s.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
		g.Go(func() error {
			if err := s.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", listeners[i].Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		if err := h.reconcile(ctx); err != nil {
			return err
		}
		if plugins != nil {
			if err := plugins.Start(); err != nil {
				return err
			}
			defer plugins.Stop()
		}
		close(ready)
		sdnotify.SdNotify(false, sdnotify.SdNotifyReady)
		log.Info("ready", "socket", c.Control.Socket, "after", time.Since(begin).Round(time.Millisecond))
		if c.Image.GC.Enabled { // what is in use is known from here on
			g.Go(func() error {
				h.collectImages(ctx)
				return nil
			})
		}
		return h.pods.Run(h.traced(ctx))
	})
	g.Go(func() error {
		heap.GiveBack(ctx)
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		log.Info("stopping; containers go on")
		sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
		// Streams (exec, logs -f) end with their connections.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		var all sync.WaitGroup
		if runtime != nil {
			all.Go(func() { runtime.Stop(3 * time.Second) })
		}
		for _, s := range servers {
			all.Go(func() {
				if s.Shutdown(grace) != nil {
					s.Close()
				}
			})
		}
		all.Wait()
		return nil
	})
	err = g.Wait()
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopped")
	return nil
}

func pidFile(c config.Config) string { return filepath.Join(c.Run, "daemon.pid") }

// listenUnix makes a socket, readable by root and by the group, if one is given, from its
// first moment: it is made under another name with the right mode and moved into place.
func listenUnix(path, group string) (net.Listener, error) {
	gid, mode := 0, os.FileMode(0o600)
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, errs.New(errs.Invalid, "control.group: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, err
		}
		mode = 0o660
	}
	tmp := path + ".new"
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chown(tmp, 0, gid); err == nil {
		err = os.Chmod(tmp, mode)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
