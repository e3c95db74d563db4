# Makes go test -v brief: one line per package, and what a package that failed has printed.
function dump(  i) {
	for (i = 0; i < n; i++)
		if (line[i] !~ /^ *(=== |--- PASS)/) print line[i]
	n = 0
}
/^(ok|\?)[ \t]/ || /\[no test files\]$/ { print; fflush(); n = 0; next }
{ line[n++] = $0 }
/^FAIL\t/ { dump(); fflush() }
END { dump() }
