from trephine.client.cli import main

main()
