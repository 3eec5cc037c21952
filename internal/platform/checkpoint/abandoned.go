package checkpoint

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Abandoned waits until no process has something open in a directory that was removed: CRIU, which outlives
// its caller. It looks for at most abandonWait.
func Abandoned(ctx context.Context, dir string) error {
	for end := time.Now().Add(abandonWait); time.Now().Before(end); {
		links, err := filepath.Glob("/proc/[0-9]*/fd/*")
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(links, func(l string) bool {
			to, err := os.Readlink(l)
			return err == nil && strings.HasPrefix(to, dir+"/")
		}) {
			return nil
		}
		select {
		case <-time.After(abandonLook):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

const (
	abandonWait = 10 * time.Second
	abandonLook = 50 * time.Millisecond
)
