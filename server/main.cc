// The `weir` binary: one command line over everything.
#include <cstdio>

#include "server/commands/commands.h"

int main(int argc, char** argv) {
  CLI::App app("Weir serves hybrid linear-attention language models.", argc > 0 ? argv[0] : "weir");
  app.set_version_flag("--version", std::string("weir ") + WEIR_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  int exit_code = 0;
  weir::server::AddServeCommand(app, &exit_code);
  weir::server::AddGatewayCommand(app, &exit_code);
  weir::server::AddGenerateCommand(app, &exit_code);
  weir::server::AddChatCommand(app, &exit_code);
  weir::server::AddInspectCommand(app, &exit_code);
  weir::server::AddCheckCommand(app, &exit_code);
  weir::server::AddBenchCommand(app, &exit_code);
  weir::server::AddKeysCommand(app, &exit_code);
  weir::server::AddHealthCommand(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_code;
}
