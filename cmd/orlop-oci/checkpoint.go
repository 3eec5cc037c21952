package main

import (
	"context"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
	"github.com/orlop-io/orlop/internal/platform/container"
)

// imageFlags are the flags that checkpoint and restore have in common.
func imageFlags(f *flags, im *checkpoint.Images, emptyNS *[]string) {
	f.str(&im.Dir, "image-path", "checkpoint", "DIR", "directory of CRIU's images (default: ./checkpoint)")
	f.str(&im.Work, "work-path", "", "DIR", "directory of CRIU's log and statistics (default: that of the images)")
	f.bool(&im.TCPEstablished, "tcp-established", "", "keep open TCP connections")
	f.bool(&im.TCPClose, "tcp-close", "", "close open TCP connections")
	f.bool(&im.ExtUnixSockets, "ext-unix-sk", "", "allow unix sockets that are connected to outside")
	f.bool(&im.ShellJob, "shell-job", "", "allow a terminal and a session from outside")
	f.bool(&im.FileLocks, "file-locks", "", "keep file locks")
	f.bool(&im.LazyPages, "lazy-pages", "", "restore memory as it is used (userfaultfd)")
	f.bool(&im.AutoDedup, "auto-dedup", "", "keep each page of memory in one image only")
	f.str(&im.Cgroups, "manage-cgroups-mode", "", "MODE", "of groups below the container's own: soft, full, strict or ignore (default: soft where there are any, else ignore)")
	f.strs(emptyNS, "empty-ns", "NAMESPACE", "restore this namespace empty: network, which always is")
}

// checkEmptyNS: the network namespace is restored empty in any case, others never.
func checkEmptyNS(list []string) error {
	for _, ns := range list {
		if ns != "network" {
			return errs.New(errs.Unsupported, "--empty-ns %s: CRIU can do that for network alone", ns)
		}
	}
	return nil
}

func checkpointCommand(f *flags) func(*app, []string) error {
	var o checkpoint.Options
	var emptyNS []string
	var pages string
	status := -1
	imageFlags(f, &o.Images, &emptyNS)
	f.str(&o.Parent, "parent-path", "", "DIR", "directory of an earlier pre-dump, relative to the images': only what was written to since is saved")
	f.bool(&o.LeaveRunning, "leave-running", "", "let the container go on")
	f.bool(&o.PreDump, "pre-dump", "", "save memory alone, and let the container go on")
	f.bool(&o.TCPSkipInFlight, "tcp-skip-in-flight", "", "leave out TCP connections that are being made")
	f.bool(&o.LinkRemap, "link-remap", "", "give files without a name one, so that they can be saved")
	f.str(&pages, "page-server", "", "ADDRESS:PORT", "send memory to this page server; with --lazy-pages be one")
	f.int(&status, "status-fd", status, "FD", "with --lazy-pages: write a zero byte to this descriptor once pages can be asked for")
	return func(a *app, args []string) (err error) {
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		if err := checkEmptyNS(emptyNS); err != nil {
			return err
		}
		if pages != "" {
			if o.PageServer, o.PagePort, err = pageServer(pages); err != nil {
				return err
			}
		}
		if o.LazyPages && o.PageServer == "" {
			return errs.New(errs.Invalid, "--lazy-pages: give --page-server, the address at which pages are asked for")
		}
		if status >= 0 {
			if o.Status, err = statusFile(status); err != nil {
				return err
			}
		}
		o.CRIU = a.criu
		return c.Checkpoint(context.Background(), o)
	}
}

func pageServer(s string) (address string, port int, err error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return "", 0, errs.New(errs.Invalid, "--page-server %s: use ADDRESS:PORT, by numbers", s)
	}
	return a.Addr().String(), int(a.Port()), nil
}

// statusFile is the inherited descriptor, which has to be one that can be written to.
func statusFile(fd int) (*os.File, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY {
		err = unix.EBADF
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "--status-fd %d: it is not open for writing", fd)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "status"), nil
}

func restoreCommand(f *flags) func(*app, []string) error {
	var m making
	var im checkpoint.Images
	var emptyNS []string
	var noSubreaper bool
	f.str(&m.o.Bundle, "bundle", ".", "DIR", "the bundle (default: the working directory)")
	f.short("b")
	f.str(&m.o.ConsoleSocket, "console-socket", "", "PATH", "socket that is sent the master of the terminal")
	f.str(&m.o.PIDFile, "pid-file", "", "FILE", "write the number of the container's process to this file")
	f.bool(&m.o.NoPivot, "no-pivot", "", "is refused: CRIU always uses pivot_root(2)")
	f.bool(&m.o.Detach, "detach", "d", "leave once the container runs")
	f.bool(&noSubreaper, "no-subreaper", "", "do not take processes whose parents have ended")
	imageFlags(f, &im, &emptyNS)
	f.str(&im.LSMProfile, "lsm-profile", "", "TYPE:NAME", "security label of the processes, instead of the saved one")
	f.str(&im.LSMContext, "lsm-mount-context", "", "CONTEXT", "security context of the mounts, instead of the saved one")
	return func(a *app, args []string) error {
		if err := checkEmptyNS(emptyNS); err != nil {
			return err
		}
		im.CRIU = a.criu
		s, err := a.store()
		if err != nil {
			return err
		}
		m.o.In, m.o.Out, m.o.Err = os.Stdin, os.Stdout, os.Stderr
		return restoreContainer(s, args[0], m.o, im, !noSubreaper)
	}
}

// restoreContainer restores a container, and stays until it has ended unless it is to leave it.
func restoreContainer(s *container.Store, id string, o container.CreateOptions, im checkpoint.Images, subreaper bool) error {
	ctx, stop := interruptible()
	defer stop()
	c, err := s.Restore(ctx, id, o, im)
	if err != nil {
		return err
	}
	defer c.Close()
	if o.Detach {
		return nil
	}
	fg, err := container.NewForeground(subreaper)
	if err != nil {
		return removing(c, err)
	}
	if ctx.Err() != nil {
		return removing(c, context.Cause(ctx))
	}
	stop()
	defer fg.Close()
	if err := fg.Attach(c.Process()); err != nil {
		return removing(c, err)
	}
	code, err := fg.Wait(c.Process())
	if err := removing(c, err); err != nil {
		return err
	}
	if code != 0 {
		return status(code)
	}
	return nil
}
