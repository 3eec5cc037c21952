// Command orlop is the daemon and the command line of Orlop.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends us at once.
	context.AfterFunc(ctx, stop)
	a := &app{}
	err := a.rootCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	text, code := explain(err, a.socket)
	var exit *exitError // what the process says of itself stands
	if ctx.Err() != nil && code == exitFailure && !errors.As(err, &exit) {
		return exitInterrupted
	}
	if text != "" {
		fmt.Fprintln(os.Stderr, text)
	}
	return code
}
