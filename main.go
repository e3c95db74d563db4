// Command curfew puts a maximum lifetime on TCP connections.
package main

func main() {}
