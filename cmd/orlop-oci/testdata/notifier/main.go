// Command notifier says by sd_notify(3) that it is ready, after things that are not to be
// believed, and waits.
package main

import (
	"net"
	"os"
	"time"
)

func main() {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		panic(err)
	}
	for _, m := range []string{"MAINPID=1", "STATUS=false\nREADY=0", "STATUS=good\nREADY=1\nFDSTORE=1"} {
		if _, err := c.Write([]byte(m)); err != nil {
			panic(err)
		}
	}
	time.Sleep(time.Hour)
}
