from distmeta.cli import main

main()
