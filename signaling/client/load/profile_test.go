package load

import (
	"os"
	"path/filepath"
	"runtime/pprof"
)

// profile writes cpu.pprof and heap.pprof into a folder, the latter when what it returns is called.
func profile(dir string) func() {
	f, err := os.Create(filepath.Join(dir, "cpu.pprof"))
	if err != nil {
		panic(err)
	}
	pprof.StartCPUProfile(f)
	return func() {
		pprof.StopCPUProfile()
		f.Close()
		if f, err = os.Create(filepath.Join(dir, "heap.pprof")); err == nil {
			pprof.WriteHeapProfile(f)
			f.Close()
		}
	}
}
