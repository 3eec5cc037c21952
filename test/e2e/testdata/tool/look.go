package main

import (
	"fmt"
	"os"
	"strings"
)

// look prints a file, or what else the word says.
func look(what string) {
	verb, path, _ := strings.Cut(what, ":")
	switch {
	case what == "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case what == "cwd":
		dir, err := os.Getwd()
		fmt.Println(dir, err)
	case what == "pid":
		fmt.Println("pid", os.Getpid())
	case verb == "stat":
		if _, err := os.Stat(path); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("found", path)
	case verb == "write":
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = f.WriteString("1")
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("wrote", path)
	default:
		b, err := os.ReadFile(what)
		if err != nil {
			fmt.Println(err)
		}
		fmt.Println(string(b))
	}
}
