// Command run runs a program in the test machine, for whoever
// looks into a failure:
//
//	go run ./test/vm/run [-systemd] [-console] -- /bin/sh -c 'cat /proc/mounts'
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/orlop-io/orlop/test/vm"
)

func main() {
	var o vm.Options
	flag.BoolVar(&o.Systemd, "systemd", false, "boot systemd as process 1")
	console := flag.Bool("console", false, "show the kernel's messages on standard error")
	flag.StringVar(&o.Disk, "disk", "", "file that the machine has as /dev/vda")
	flag.IntVar(&o.MemoryMiB, "memory", 1024, "memory in MiB")
	flag.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "end the machine after that long")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: run [flags] -- PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	if *console {
		o.Console = os.Stderr
	}
	c := vm.Command{Argv: flag.Args(), Stdout: os.Stdout, Stderr: os.Stderr}
	c.Dir, _ = os.Getwd()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code, err := vm.Run(ctx, o, c)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	os.Exit(code)
}
